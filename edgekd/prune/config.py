"""The options of a cut. All of them change the result, so all enter the key."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from edgekd.core.schema import suggest
from edgekd.core.stage import StageConfig
from edgekd.prune.importance import IMPORTANCES
from edgekd.targets.latency import LatencyModel
from edgekd.targets.schema import Precision


class PruneConfig(StageConfig):
    """How much to cut, and how to choose it.

    Attributes:
        macs_keep: Largest share of the multiply-accumulates that may remain; gives way, and says so, where a cut along
            the latency finds nothing more that makes the engine faster.
        strict: Fails where the groups of channels that can be cut do not reach `macs_keep`; otherwise the same share of
            what they do reach is kept, and that is said.
        budget_ms: Cut on until the latency at batch 1, predicted or by the table, keeps this; None stops at
            `macs_keep`.
        rounds_left: This cut is the first of so many with training in between, and goes the first of as many equal
            ratios from the latency of now to `budget_ms`. `macs_keep` and `macs_floor` speak of this cut.
        precision: The pruned network will be deployed in it; decides its predicted latency, and a latency table must
            be of it.
        latency_model: Of the device; a model on the port `latency_model` comes before it.
        macs_floor: With a budget: smallest share that may remain, since a network cut to less rarely recovers. When
            even that misses the budget, `macs_keep` is kept.
        channel_multiple: Widths that shrink end at a multiple of this, which the device likes; halved, and said so,
            when the network cannot reach `macs_keep` with it.
        kernel_block: With `latency`, and with `measured` for groups that were not timed: the device's kernels compute
            channels in blocks of so many, and a width in between takes as long as the next whole block. No step ends at
            such a width.
        importance: How units are ranked: see `edgekd.prune.importance`.
        importance_images: Training images that an importance looks at, when it looks at any.
        follow: What decides where units leave. `macs`: see `scope`. `latency`: wherever the predicted latency falls
            most for the importance that is lost; what does not make the engine faster is not cut. `measured`: the same
            along the table on the port `latency_table`, in which engines of this network were timed on the device. Both
            add scores up across groups, so they want an importance whose scores are on one scale (lamp, fisher, kd).
        scope: With `macs`: `uniform` shrinks all groups by about the same share; `global` lets them compete by
            importance.
        exclude: Paths or glob patterns of modules whose output channels all stay.
    """

    macs_keep: float = Field(gt=0, lt=1)
    strict: bool = True
    budget_ms: float | None = Field(default=None, gt=0)
    rounds_left: int = Field(default=1, ge=1)
    precision: Precision = "fp32"
    latency_model: LatencyModel | None = None
    macs_floor: float = Field(default=0.2, gt=0, lt=1)
    channel_multiple: int = Field(default=8, ge=1)
    kernel_block: int = Field(default=1, ge=1)
    importance: str = "l2"
    importance_images: int = Field(default=256, ge=1)
    follow: Literal["macs", "latency", "measured"] = "macs"
    scope: Literal["uniform", "global"] = "uniform"
    exclude: tuple[str, ...] = ()

    @field_validator("importance")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in IMPORTANCES:
            raise ValueError(f"no such importance;{suggest(value, IMPORTANCES)} known: {', '.join(IMPORTANCES)}")
        return value

    @property
    def predicts(self) -> bool:
        """Whether a latency model is needed."""
        return self.follow == "latency" or (self.follow == "macs" and self.budget_ms is not None)
