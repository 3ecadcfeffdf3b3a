"""What a finished node leaves behind: the key it ran under, in parts, and what it made.

The parts are kept beside the digest, so that a later plan can say what changed and not only that something did.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Literal

from pydantic import Field, JsonValue

from edgekd.core.bundle import ModelBundle
from edgekd.core.digest import Digest, digest
from edgekd.core.schema import Schema

_LONGEST_VALUE = 40


class InputRef(Schema):
    """A bundle on a port.

    Attributes:
        source: As the graph writes it: a node's name, or `@teacher`.
        content: Digest of the bundle.
        name: The producer's name where the stage sees it, else None; part of the key.
    """

    source: str
    content: Digest
    name: str | None = None


class RunKey(Schema):
    """Everything that the result of a stage depends on.

    How it runs (device, threads, verbosity) and what its node is called are no part of it.

    Attributes:
        stage: Registry name.
        version: Of the stage's results.
        config: All fields, defaults included.
        inputs: By port, in the graph's order; unconnected ports are left out.
        resources: Digests of the resources that the stage reads.
        seed: The run's.
    """

    stage: str
    version: int
    config: dict[str, JsonValue]
    inputs: dict[str, tuple[InputRef, ...]]
    resources: dict[str, Digest]
    seed: int

    @property
    def digest(self) -> Digest:
        """The cache key."""
        inputs = {port: [[ref.name, ref.content] for ref in refs] for port, refs in self.inputs.items()}
        return digest("run", self.stage, self.version, self.config, inputs, self.resources, self.seed)

    def changes_since(self, before: RunKey) -> tuple[str, ...]:
        """What differs from an earlier key, one phrase each (`"config.epochs 3 -> 5"`); empty for equal digests."""
        if self.stage != before.stage:
            return (f"stage {before.stage} -> {self.stage}",)
        return (
            *([f"stage version {before.version} -> {self.version}"] if self.version != before.version else []),
            *_config_changes("config", before.config, self.config),
            *_input_changes(before.inputs, self.inputs),
            *(f"resource {name} changed" for name in _differing(before.resources, self.resources)),
            *([f"seed {before.seed} -> {self.seed}"] if self.seed != before.seed else []),
        )

    def at_ports_of(self, other: RunKey) -> RunKey:
        """This key with only those inputs that `other` has too, to compare keys before all inputs are known."""
        return self.model_copy(update={"inputs": {p: refs for p, refs in self.inputs.items() if p in other.inputs}})


class Record(Schema):
    """The result of one node.

    Attributes:
        node: Its name in the graph of the run that is recorded.
        run: Token of that run, see `edgekd.core.lock`.
        key: What the result depends on.
        bundle: The artifact; its files lie in the store.
        metrics: Numbers that the stage reported.
        decisions: What the stage chose or substituted, and why.
        seconds: How long the stage took.
        finished: When the stage ended.
    """

    schema_version: Literal[1] = 1
    node: str
    run: str
    key: RunKey
    bundle: ModelBundle
    metrics: dict[str, JsonValue] = Field(default_factory=dict)
    decisions: tuple[str, ...] = ()
    seconds: float
    finished: datetime

    def to_json(self) -> str:
        """Stable text form; `Record.parse(json.loads(text), where)` reads it back."""
        return json.dumps(self.plain(), indent=1, sort_keys=True, allow_nan=False)


def _differing(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    return sorted(name for name in {*before, *now} if before.get(name) != now.get(name))


def _config_changes(where: str, before: object, now: object) -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in sorted({*before, *now}):
            if name not in before:
                yield f"{where}.{name} added ({_text(now[name])})"
            elif name not in now:
                yield f"{where}.{name} removed (was {_text(before[name])})"
            else:
                yield from _config_changes(f"{where}.{name}", before[name], now[name])
    elif digest("value", before) != digest("value", now):  # type: ignore[arg-type]  # JSON values, both
        yield f"{where} {_text(before)} -> {_text(now)}"


def _text(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


def _input_changes(before: Mapping[str, Sequence[InputRef]], now: Mapping[str, Sequence[InputRef]]) -> Iterator[str]:
    for port in sorted({*before, *now}):
        old, new = before.get(port, ()), now.get(port, ())
        seen = [(ref.name, ref.content) for ref in old]
        if seen == [(ref.name, ref.content) for ref in new]:
            continue
        if not old:
            yield f"input {port} connected ({_sources(new)})"
        elif not new:
            yield f"input {port} disconnected (was {_sources(old)})"
        else:
            fresh = [ref for ref in new if (ref.name, ref.content) not in seen]
            yield f"input {port} changed ({_sources(fresh)})" if fresh else f"input {port} lost sources or their order"


def _sources(refs: Sequence[InputRef]) -> str:
    return ", ".join(ref.source if ref.source.startswith("@") else f"node {ref.source}" for ref in refs)
