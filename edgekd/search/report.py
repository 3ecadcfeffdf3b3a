"""What a search found, as plain data."""

from __future__ import annotations

from pydantic import Field

from edgekd.core.recipe import ModelRecipe
from edgekd.core.report import REPORT_SCHEMA_VERSION
from edgekd.core.schema import Schema
from edgekd.search.space import Arch
from edgekd.targets.schema import Precision


class Candidate(Schema):
    """A scored student.

    Attributes:
        arch: Its place in the search space.
        score: Sum over the proxies of its rank among all scored students, each in [0, 1].
        values: By proxy: the mean over the seeds.
        spreads: By proxy: the standard deviation over the seeds.
        predicted_ms: Latency at batch 1 that the model of the device predicts; None without one.
    """

    arch: Arch
    score: float
    values: dict[str, float]
    spreads: dict[str, float]
    predicted_ms: float | None
    params_m: float
    macs_m: float


class Pick(Candidate):
    """A student that goes on to training."""

    recipe: ModelRecipe


class SearchReport(Schema):
    """The result of a search.

    Attributes:
        space: Registry name.
        proxies: Registry names, whose ranks were added.
        budget_ms: Limit on the predicted latency; None when there was none.
        precision: The latency was predicted for it.
        relative_error: Of the latency model, where it is known.
        picks: Best first.
        evaluated: All scored students, in the order in which they were scored.
        rejected: Proposals that were over the budget and never scored.
    """

    schema_version: int = REPORT_SCHEMA_VERSION
    space: str
    proxies: tuple[str, ...]
    budget_ms: float | None
    precision: Precision
    relative_error: float | None
    picks: tuple[Pick, ...] = Field(min_length=1)
    evaluated: tuple[Candidate, ...]
    rejected: int
