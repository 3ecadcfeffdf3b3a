"""What a search is asked to do: the config of its stage."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from edgekd.core.stage import StageConfig
from edgekd.search.searcher import AUTO
from edgekd.targets.latency import LatencyModel
from edgekd.targets.schema import Precision


class SearchConfig(StageConfig):
    """What to search, by which ranking, under which limit.

    Attributes:
        space: A name in `SPACES`.
        searcher: A name in `SEARCHERS`, or `auto`.
        proxy: A name in `RANKINGS`, one proxy, or several joined by `+`, whose ranks are added.
        budget_ms: Limit on the predicted latency at batch 1; None limits students to `teacher_share` of the teacher.
        teacher_share: Largest cost of a student as a share of the teacher's, without a budget; relaxed, and said so,
            where no student is that cheap.
        precision: The students will be deployed in it.
        latency_model: Of the device; a model on the port `latency_model` comes before it.
        evaluations: Students to score, those that turn out unscorable included; an exhaustive search that was asked
            for by name scores all that fit.
        population: Of evolution and NSGA-II; the first so many students are drawn at random.
        tournament: How many compete to be a parent in an evolution.
        generation: Students proposed at a time, before their scores are known. More keep more workers busy and learn
            more slowly; the result depends on it, and not on the number of workers.
        seeds: Random draws of the weights, for proxies that depend on them; None takes as many as the ranking needs.
        batch_size: Images that proxies see.
        picks: How many students the report puts forward.
        channel_multiple: Widths are multiples of it.
    """

    space: str = "residual"
    searcher: str = AUTO
    proxy: str = "combined"
    budget_ms: float | None = Field(default=None, gt=0)
    teacher_share: float = Field(default=0.25, gt=0, le=1)
    precision: Precision = "fp32"
    latency_model: LatencyModel | None = None
    evaluations: int = Field(default=200, ge=1)
    population: int = Field(default=32, ge=2)
    tournament: int = Field(default=8, ge=1)
    generation: int = Field(default=16, ge=1)
    seeds: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=32, ge=2)
    picks: int = Field(default=1, ge=1)
    channel_multiple: int = Field(default=8, ge=1)

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.picks > self.evaluations:
            raise ValueError(f"{self.picks} picks need at least as many evaluations, got {self.evaluations}")
        return self
