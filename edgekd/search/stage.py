"""The stages that find a student: `search` ranks architectures under a limit, `pick` builds one of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import ClassVar, Self

import torch
from pydantic import Field, JsonValue, model_validator
from torch import nn

from edgekd.core.blobs import disk_errors
from edgekd.core.bundle import BundleKind
from edgekd.core.report_io import bundle_from_report, report_from_bundle, schema_from_json
from edgekd.core.schema import Schema
from edgekd.core.stage import Context, Inputs, Stage, StageConfig, StageResult, port
from edgekd.data.calibration import calibration_samples
from edgekd.data.dataset import Dataset
from edgekd.errors import UserError
from edgekd.nn.build import WEIGHTS_FILE, is_trainable, module_from_bundle, module_from_recipe
from edgekd.nn.count import count_macs, count_params
from edgekd.nn.save import bundle_from_module
from edgekd.search.limit import Costs, Limit, reachable_limit, student_limit
from edgekd.search.proxy import PROXIES, batch_from_images
from edgekd.search.ranking import rank_sums
from edgekd.search.report import Candidate, Pick, SearchReport
from edgekd.search.scoring import Scorer
from edgekd.search.searcher import AgingEvolution, EvolutionState
from edgekd.search.space import SPACES, Arch, GridSpace, Task
from edgekd.targets.latency import LatencyModel
from edgekd.targets.schema import Precision

CHECKPOINT_FILE = "search.json"
WHY_SIZE = (
    "Students within the limit are ranked by size: no training-free proxy here has been shown to rank them better. "
    "Another ranking is one flag away: --proxy diswot+params."
)


class SearchConfig(StageConfig):
    """What to search, by which ranking, under which limit.

    Attributes:
        space: A name in `SPACES`.
        proxy: One proxy, or several joined by `+`, whose ranks are added.
        budget_ms: Limit on the predicted latency at batch 1; None limits students to `teacher_share` of the teacher.
        teacher_share: Largest cost of a student as a share of the teacher's, without a budget; relaxed, and said so,
            where no student is that cheap.
        precision: The students will be deployed in it.
        latency_model: Of the device; a model on the port `latency_model` comes before it.
        evaluations: Students to score.
        population: Of the evolution; the first so many students are drawn at random.
        tournament: How many compete to be a parent.
        seeds: Random draws of the weights, for proxies that depend on them.
        batch_size: Images that proxies see.
        picks: How many students the report puts forward.
        channel_multiple: Widths are multiples of it.
    """

    space: str = "residual"
    proxy: str = "params+macs"
    budget_ms: float | None = Field(default=None, gt=0)
    teacher_share: float = Field(default=0.25, gt=0, le=1)
    precision: Precision = "fp32"
    latency_model: LatencyModel | None = None
    evaluations: int = Field(default=200, ge=1)
    population: int = Field(default=32, ge=2)
    tournament: int = Field(default=8, ge=1)
    seeds: int = Field(default=5, ge=1)
    batch_size: int = Field(default=32, ge=2)
    picks: int = Field(default=1, ge=1)
    channel_multiple: int = Field(default=8, ge=1)

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.picks > self.evaluations:
            raise ValueError(f"{self.picks} picks need at least as many evaluations, got {self.evaluations}")
        return self

    @property
    def proxies(self) -> tuple[str, ...]:
        """Names of the proxies whose ranks are added."""
        return tuple(self.proxy.split("+"))


class SearchCheckpoint(Schema):
    """A search between two evaluations.

    Attributes:
        state: Of the evolution.
        spreads: Of the scores, in the order of `state.told`.
    """

    state: EvolutionState
    spreads: tuple[tuple[float, ...], ...]


class SearchStage(Stage[SearchConfig]):
    """A report that ranks students of one space for this teacher, data and device; nothing is trained."""

    name = "search"
    Config = SearchConfig
    ports: ClassVar = {"teacher": port(BundleKind.TORCH), "latency_model": port(BundleKind.REPORT, optional=True)}
    produces = BundleKind.REPORT
    reads = frozenset({"data"})

    def requires(self, inputs: Inputs, ctx: Context) -> None:
        config = self.config
        SPACES.get(config.space)
        by_weights = [name for name in config.proxies if PROXIES.get(name).uses_weights]
        if by_weights and not is_trainable(inputs.one("teacher").model):
            raise UserError(
                f"The proxy {by_weights[0]!r} looks inside the teacher, whose program was not rebuilt into layers.",
                hint="rank by size: --proxy params+macs",
            )
        if config.budget_ms is not None and config.latency_model is None and inputs.maybe("latency_model") is None:
            raise UserError(
                f"A search under a budget of {config.budget_ms:g} ms needs a latency model of the device.",
                hint="connect a latency-model node to the port 'latency_model', or give search.latency_model",
            )

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        config, bundle = self.config, inputs.one("teacher")
        p, classes = bundle.model.preprocessing, bundle.outputs[0].shape[-1]
        teacher = module_from_bundle(bundle, ctx.blobs)
        task = Task(
            preprocessing=p,
            labels=bundle.model.labels,
            classes=int(classes),
            channel_multiple=config.channel_multiple,
        )
        space = SPACES.get(config.space)(task)
        model = self._latency_model(inputs, ctx)
        error = None if model is None else model.relative_error
        costs = Costs(space, input_shape=p.input_shape, model=model, precision=config.precision)
        teacher_cost = costs.of_module(teacher)
        cheapest = costs.of(space.cheapest)
        limit = student_limit(
            teacher_cost,
            cheapest,
            budget_ms=config.budget_ms,
            teacher_share=config.teacher_share,
            relative_error=error,
        )
        limit = reachable_limit(limit, cheapest, teacher=teacher_cost, budget_ms=config.budget_ms, space=config.space)
        checkpoint = self._evolve(space, costs, limit, teacher, ctx)
        report = self._report(space, costs, checkpoint, error)
        return StageResult(
            bundle=bundle_from_report(report, ctx),
            metrics=_metrics(report),
            decisions=(limit.reason, *_decisions(report, space, config)),
        )

    def _latency_model(self, inputs: Inputs, ctx: Context) -> LatencyModel | None:
        fitted = inputs.maybe("latency_model")
        if fitted is None:
            return self.config.latency_model
        return report_from_bundle(fitted, LatencyModel, ctx, "latency_model")

    def _evolve(
        self, space: GridSpace, costs: Costs, limit: Limit, teacher: nn.Module, ctx: Context
    ) -> SearchCheckpoint:
        """Scores students until there are enough, or none is left; goes on from a checkpoint in the scratch folder."""
        config, path = self.config, ctx.scratch / CHECKPOINT_FILE
        evolution = AgingEvolution(
            space,
            population=config.population,
            tournament=config.tournament,
            fits=lambda arch: limit.admits(costs.of(arch)),
            seed=ctx.seed,
        )
        spreads: list[tuple[float, ...]] = []
        if path.exists():
            saved = schema_from_json(path, SearchCheckpoint, "search checkpoint")
            evolution.restore(saved.state)
            spreads = list(saved.spreads)
        scorer = self._scorer(teacher, space.task, ctx)
        while len(spreads) < config.evaluations and (arch := evolution.ask()) is not None:
            score = scorer.score(space.recipe(arch))
            evolution.tell(arch, score.values)
            spreads.append(score.spreads)
            _save(SearchCheckpoint(state=evolution.state(), spreads=tuple(spreads)), path)
            ctx.reporter.progress("search", len(spreads), config.evaluations, {"rejected": evolution.rejected})
        if len(spreads) < config.evaluations:
            ctx.reporter.progress("search", config.evaluations, config.evaluations)
        return SearchCheckpoint(state=evolution.state(), spreads=tuple(spreads))

    def _scorer(self, teacher: nn.Module, task: Task, ctx: Context) -> Scorer:
        data, config = ctx.resource("data", Dataset), self.config
        samples = calibration_samples(data, task.preprocessing, samples=config.batch_size, seed=ctx.seed)
        labels = None if samples.labels is None else torch.from_numpy(samples.labels)
        batch = batch_from_images(torch.from_numpy(samples.images), labels, classes=task.classes, seed=ctx.seed)
        return Scorer(teacher, batch, proxies=config.proxies, seeds=range(ctx.seed, ctx.seed + config.seeds))

    def _report(
        self, space: GridSpace, costs: Costs, checkpoint: SearchCheckpoint, relative_error: float | None
    ) -> SearchReport:
        told = checkpoint.state.told
        sums = rank_sums([values for _, values in told])
        evaluated = [
            self._candidate(arch, values, spreads, float(rank), costs)
            for (arch, values), spreads, rank in zip(told, checkpoint.spreads, sums, strict=True)
        ]
        best = sorted(evaluated, key=lambda candidate: (-candidate.score, candidate.macs_m, candidate.arch))
        picks = [
            Pick(**candidate.plain(), recipe=space.recipe(candidate.arch)) for candidate in best[: self.config.picks]
        ]
        return SearchReport(
            space=self.config.space,
            proxies=self.config.proxies,
            budget_ms=self.config.budget_ms,
            precision=self.config.precision,
            relative_error=relative_error,
            picks=tuple(picks),
            evaluated=tuple(evaluated),
            rejected=checkpoint.state.rejected,
        )

    def _candidate(
        self, arch: Arch, values: tuple[float, ...], spreads: tuple[float, ...], rank: float, costs: Costs
    ) -> Candidate:
        cost = costs.of(arch)
        return Candidate(
            arch=arch,
            score=rank,
            values=dict(zip(self.config.proxies, values, strict=True)),
            spreads=dict(zip(self.config.proxies, spreads, strict=True)),
            predicted_ms=cost.predicted_ms,
            params_m=cost.params / 1e6,
            macs_m=cost.macs / 1e6,
        )


class PickConfig(StageConfig):
    """Which student of a search goes on.

    Attributes:
        rank: 0 is the best.
    """

    rank: int = Field(default=0, ge=0)


class PickStage(Stage[PickConfig]):
    """One student of a search, its weights drawn at random from the run's seed, ready to be trained."""

    name = "pick"
    Config = PickConfig
    ports: ClassVar = {"search": port(BundleKind.REPORT)}
    produces = BundleKind.TORCH

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        report = report_from_bundle(inputs.one("search"), SearchReport, ctx, "search")
        if self.config.rank >= len(report.picks):
            raise UserError(
                f"The search put {len(report.picks)} students forward, so there is none of rank {self.config.rank}.",
                hint=f"raise search.picks to {self.config.rank + 1}, or its evaluations when the space ran out",
            )
        pick = report.picks[self.config.rank]
        module = module_from_recipe(pick.recipe, seed=ctx.seed)
        bundle = bundle_from_module(module, recipe=pick.recipe, blobs=ctx.blobs, scratch=ctx.scratch)
        metrics: dict[str, JsonValue] = {
            "params_m": count_params(module) / 1e6,
            "macs_m": count_macs(module, pick.recipe.preprocessing.input_shape) / 1e6,
            "size_mib": ctx.path(bundle, WEIGHTS_FILE).stat().st_size / 2**20,
        }
        if pick.predicted_ms is not None:
            metrics["predicted_ms"] = pick.predicted_ms
        return StageResult(bundle=bundle, metrics=metrics)


def _save(checkpoint: SearchCheckpoint, path: Path) -> None:
    """Replaces the checkpoint at once: a kill leaves the old or the new one."""
    temporary = path.with_suffix(".tmp")
    with disk_errors(path):
        temporary.write_text(json.dumps(checkpoint.plain()), encoding="utf-8")
        os.replace(temporary, path)


def _metrics(report: SearchReport) -> dict[str, JsonValue]:
    best = report.picks[0]
    metrics: dict[str, JsonValue] = {
        "evaluated": len(report.evaluated),
        "rejected": report.rejected,
        "params_m": best.params_m,
        "macs_m": best.macs_m,
    }
    return metrics if best.predicted_ms is None else metrics | {"predicted_ms": best.predicted_ms}


def _decisions(report: SearchReport, space: GridSpace, config: SearchConfig) -> tuple[str, ...]:
    names = " + ".join(report.proxies)
    lines = [
        f"{len(report.evaluated)} of {space.size:,} students of the space {report.space!r} were scored and ranked by "
        f"{names}; {report.rejected} proposals were over the limit."
    ]
    if len(report.picks) < config.picks:
        lines.append(f"Only {len(report.picks)} of {config.picks} picks were found: no more students fit the limit.")
    if "params" in report.proxies and not any(PROXIES.get(name).uses_weights for name in report.proxies):
        lines.append(WHY_SIZE)
    return tuple(lines)
