"""What a search found, as plain data."""

from __future__ import annotations

from pydantic import Field

from edgekd.core.recipe import ModelRecipe
from edgekd.core.schema import Schema
from edgekd.search.space import Arch
from edgekd.targets.schema import Precision

SEARCH_SCHEMA_VERSION = 2


class Candidate(Schema):
    """A scored student.

    Attributes:
        arch: Its place in the search space.
        text: What it is, in words.
        score: By the ranking, among all scored students of this search; higher is better.
        spread: Standard deviation that other seeds would give the score; 0 where nothing depends on a seed.
        values: By proxy: the mean over the seeds.
        spreads: By proxy: the standard deviation over the seeds.
        predicted_ms: Latency at batch 1 that the model of the device predicts; None without one.
        params_m: Parameters, millions.
        macs_m: Multiply-accumulates, millions.
    """

    arch: Arch
    text: str
    score: float
    spread: float
    values: dict[str, float]
    spreads: dict[str, float]
    predicted_ms: float | None
    params_m: float
    macs_m: float

    @property
    def cost(self) -> float:
        """Milliseconds where they are predicted, else millions of multiply-accumulates."""
        return self.macs_m if self.predicted_ms is None else self.predicted_ms


class Pick(Candidate):
    """A student that goes on to training.

    Attributes:
        reason: Why it, in one sentence.
    """

    recipe: ModelRecipe
    reason: str


class Skipped(Schema):
    """A student that could not be scored, and why."""

    arch: Arch
    text: str
    reason: str


class SearchReport(Schema):
    """The result of a search.

    Attributes:
        space: Registry name.
        searcher: Registry name.
        ranking: What was asked for: a ranking, or proxies joined by `+`.
        proxies: Registry names of the proxies that were asked.
        seeds: Draws of the random weights.
        budget_ms: Limit on the predicted latency; None when there was none.
        limit: Where the limit comes from, and what was done when no student keeps it.
        within_limit: Whether the picks keep the limit; the cheapest student goes on where none does.
        precision: The latency was predicted for it.
        relative_error: Of the latency model, where it is known.
        picks: Best first.
        front: The students that none beats in score, cost and parameters alike, cheapest first.
        evaluated: All scored students, in the order in which they were scored.
        skipped: Those that could not be scored; they are ranked nowhere.
        rejected: Proposals that were over the limit and never scored.
    """

    schema_version: int = SEARCH_SCHEMA_VERSION
    space: str
    searcher: str
    ranking: str
    proxies: tuple[str, ...]
    seeds: int
    budget_ms: float | None
    limit: str
    within_limit: bool
    precision: Precision
    relative_error: float | None
    picks: tuple[Pick, ...] = Field(min_length=1)
    front: tuple[Candidate, ...]
    evaluated: tuple[Candidate, ...]
    skipped: tuple[Skipped, ...]
    rejected: int
