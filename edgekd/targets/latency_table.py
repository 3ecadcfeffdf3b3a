"""A latency lookup table: how long a network took on its device with some of its channel groups narrower.

It is what pruning steers by where the device can be measured. Times of whole engines are in it, and what they make of a
latency model: the widths at which that predicts them. It speaks of one network, in one runtime and precision.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Self

from pydantic import Field, model_validator

from edgekd.core.schema import Schema
from edgekd.targets.latency import LatencyModel
from edgekd.targets.schema import Precision


class Timed(Schema):
    """A median latency and its 95 % interval."""

    p50_ms: float = Field(gt=0)
    low_ms: float = Field(gt=0)
    high_ms: float = Field(gt=0)


class TimedWidth(Schema):
    """All groups of a kind at one width.

    Attributes:
        kept: Units that each of them keeps.
        time: Of the whole engine.
        effective: Units at which the corrected model predicts the time that the noise leaves of it.
    """

    kept: int = Field(ge=1)
    time: Timed
    effective: float = Field(gt=0)


class TimedKind(Schema):
    """Channel groups that cost the same at the same width.

    Attributes:
        groups: Their names.
        units: Of each of them, whole.
        widths: That were timed, the widest first; the whole one is not among them.
    """

    groups: tuple[str, ...] = Field(min_length=1)
    units: int = Field(ge=1)
    widths: tuple[TimedWidth, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _narrower_and_narrower(self) -> Self:
        kept = [self.units, *(width.kept for width in self.widths)]
        if any(after >= before for before, after in pairwise(kept)):
            raise ValueError(f"widths must fall from {self.units}, the whole one; they are {kept[1:]}")
        return self

    def effective_of(self, kept: int) -> float:
        """Units that so many cost as many as: those of the next timed width above, since nothing is known between."""
        above = [width.effective for width in self.widths if width.kept >= kept]
        return above[-1] if above else float(self.units)


class LatencyTable(Schema):
    """What was timed, and what it corrects in a latency model.

    Attributes:
        target: Name of the device.
        runtime: Registry name.
        precision: Of the engines.
        threads: CPU threads.
        whole: The network as it is.
        kinds: Those that were timed.
        left_out: Names of the groups that were not.
        model: That is corrected.
        scales: By operation, how many times as long it takes as the model says.
        otherwise: The same for every other operation.
        fixed_ms: What is left of the whole network's time when its operations are taken away.
    """

    target: str
    runtime: str
    precision: Precision
    threads: int = Field(ge=1)
    whole: Timed
    kinds: tuple[TimedKind, ...] = Field(min_length=1)
    left_out: tuple[str, ...] = ()
    model: LatencyModel
    scales: dict[str, float]
    otherwise: float = Field(gt=0)
    fixed_ms: float

    def kind_of(self, group: str) -> TimedKind | None:
        """The kind that a group belongs to; None for one that was left out or is unknown."""
        return next((kind for kind in self.kinds if group in kind.groups), None)
