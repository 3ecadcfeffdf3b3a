"""What a run would do and why, and what a run did: plain data for the console, the report and the manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Literal, Self, TypeVar

from pydantic import JsonValue

from edgekd.core.bundle import ModelBundle
from edgekd.core.digest import Digest
from edgekd.core.record import Record
from edgekd.core.schema import Schema, suggest
from edgekd.errors import UserError

Entry = TypeVar("Entry")


class Action(StrEnum):
    """What happens to a node."""

    RUN = "run"
    """It runs. Where its inputs are not made yet, an older result that fits them exactly is still taken instead."""
    REUSE = "reuse"
    """Its result is taken from the store."""
    MAYBE = "maybe"
    """Only in a plan: whether it runs shows when its inputs are made."""


_VERBS = {Action.RUN: "runs", Action.REUSE: "reused", Action.MAYBE: "waits"}


class Decision(Schema):
    """What a plan says about one node.

    Attributes:
        reasons: At least one phrase each, such as `config.epochs 3 -> 5`.
        key: The cache key; None while an input is not made yet.
    """

    node: str
    stage: str
    action: Action
    reasons: tuple[str, ...]
    key: Digest | None = None

    @property
    def sentence(self) -> str:
        """`"runs: config.epochs 3 -> 5"`."""
        return f"{_VERBS[self.action]}: {'; '.join(self.reasons)}"


class Plan(Schema):
    """One decision per node, in the order of the run."""

    decisions: tuple[Decision, ...]

    def decision(self, node: str) -> Decision:
        """What the plan says about a node."""
        return _named(node, {found.node: found for found in self.decisions})


class NodeReport(Schema):
    """What became of one node.

    Attributes:
        action: RUN or REUSE.
        reasons: Why.
        key: The cache key.
        seconds: How long the stage took when it ran, which for a reused result was earlier.
        finished: When the result was made.
        metrics: Numbers that the stage reported.
        decisions: What the stage chose or substituted, and why.
        bundle: The artifact.
    """

    name: str
    stage: str
    action: Action
    reasons: tuple[str, ...]
    key: Digest
    seconds: float
    finished: datetime
    metrics: dict[str, JsonValue]
    decisions: tuple[str, ...]
    bundle: ModelBundle

    @classmethod
    def from_record(cls, record: Record, action: Action, reasons: tuple[str, ...]) -> Self:
        """The report of a node whose result is `record`."""
        return cls(
            name=record.node,
            stage=record.key.stage,
            action=action,
            reasons=reasons,
            key=record.key.digest,
            seconds=record.seconds,
            finished=record.finished,
            metrics=record.metrics,
            decisions=record.decisions,
            bundle=record.bundle,
        )


class RunReport(Schema):
    """What a run did, in order. A follower's holds the nodes up to the last one that it ran jointly."""

    schema_version: Literal[1] = 1
    seed: int
    nodes: tuple[NodeReport, ...]

    def node(self, name: str) -> NodeReport:
        """The report of a node."""
        return _named(name, {found.name: found for found in self.nodes})

    def bundle(self, name: str) -> ModelBundle:
        """What a node made."""
        return self.node(name).bundle

    def to_json(self) -> str:
        """Stable text form, readable back by `from_json`."""
        return json.dumps(self.plain(), indent=2, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, where: str = "run report") -> Self:
        """Reads what `to_json` wrote.

        Raises:
            UserError: Not JSON, another schema version, or keys that do not fit.
        """
        try:
            return cls.parse(json.loads(text), where)
        except json.JSONDecodeError as err:
            raise UserError(f"{where}: not valid JSON ({err}).") from err


def _named(name: str, found: Mapping[str, Entry]) -> Entry:
    if name not in found:
        raise UserError(f"No node {name!r} here.{suggest(name, found)}", hint=f"nodes: {', '.join(found) or 'none'}")
    return found[name]
