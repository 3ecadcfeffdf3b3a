"""The stage that finds students: it ranks architectures of one space under a limit, and trains nothing."""

from __future__ import annotations

from contextlib import closing
from typing import ClassVar

import torch
from pydantic import JsonValue

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.report_io import bundle_from_report, report_from_bundle
from edgekd.core.stage import Context, Inputs, Stage, StageResult, port
from edgekd.data.calibration import calibration_samples
from edgekd.data.dataset import Dataset
from edgekd.errors import UserError
from edgekd.nn.build import is_trainable, module_from_bundle
from edgekd.search.config import SearchConfig
from edgekd.search.journal import Journal, run_search
from edgekd.search.limit import Cost, Costs, Limit, reachable_limit, student_limit
from edgekd.search.proxy import Batch, batch_from_images
from edgekd.search.proxy_names import proxy_from_name
from edgekd.search.ranking import ranking_from_name
from edgekd.search.report import SearchReport
from edgekd.search.scorer_spec import scorer_spec_from_bundle
from edgekd.search.searcher import AUTO, SEARCHERS, Settings, chosen_searcher
from edgekd.search.space import SPACES, Task, Teacher
from edgekd.search.summary import decisions_of, report_from_search
from edgekd.search.terms import Terms
from edgekd.search.workers import workers_from_text
from edgekd.search.workers.choice import check_workers
from edgekd.targets.latency import LatencyModel


class SearchStage(Stage[SearchConfig]):
    """A report that ranks students of one space for this teacher, data and device."""

    name = "search"
    version = 5
    Config = SearchConfig
    ports: ClassVar = {"teacher": port(BundleKind.TORCH), "latency_model": port(BundleKind.REPORT, optional=True)}
    produces = BundleKind.REPORT
    reads = frozenset({"data"})

    def requires(self, inputs: Inputs, ctx: Context) -> None:
        config = self.config
        check_workers(ctx.execution.workers)
        SPACES.get(config.space)
        if config.searcher != AUTO:
            SEARCHERS.get(config.searcher)
        inside = [name for name in ranking_from_name(config.proxy).proxies if proxy_from_name(name).uses_teacher]
        if inside and not is_trainable(inputs.one("teacher").model):
            raise UserError(
                f"The proxy {inside[0]!r} looks inside the teacher, whose program was not rebuilt into layers.",
                hint="take a ranking that does not need the teacher: --proxy combined",
            )
        if config.budget_ms is not None and config.latency_model is None and inputs.maybe("latency_model") is None:
            raise UserError(
                f"A search under a budget of {config.budget_ms:g} ms needs a latency model of the device.",
                hint="connect a latency-model node to the port 'latency_model', or give search.latency_model",
            )

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        config, bundle = self.config, inputs.one("teacher")
        batch = self._batch(bundle, ctx)
        terms = self._terms(inputs, batch, ctx)
        name, why = chosen_searcher(config.searcher, terms.problem, evaluations=config.evaluations)
        settings = Settings(seed=ctx.seed, population=config.population, tournament=config.tournament)
        searcher = SEARCHERS.get(name)(terms.problem, settings)
        # The same draws of the teacher and the same images for every student.
        seeds = range(ctx.seed, ctx.seed + terms.seeds)
        scorer = scorer_spec_from_bundle(bundle, ctx.blobs, batch, proxies=terms.ranking.proxies, seeds=seeds)
        with closing(workers_from_text(ctx.execution.workers, scorer)) as workers:
            run_search(
                searcher,
                terms.space,
                workers,
                Journal(ctx.scratch),
                # An exhaustive search that was asked for by name goes to the end of its space.
                evaluations=terms.space.size if config.searcher == "exhaustive" else config.evaluations,
                generation=config.generation,
                reporter=ctx.reporter,
            )
        report = report_from_search(name, searcher, terms)
        return StageResult(
            bundle=bundle_from_report(report, ctx),
            metrics=_metrics(report),
            decisions=(terms.limit.reason, why, *decisions_of(report, terms)),
        )

    def _batch(self, teacher: ModelBundle, ctx: Context) -> Batch:
        """What every network sees."""
        data, p = ctx.resource("data", Dataset), teacher.model.preprocessing
        samples = calibration_samples(data, p, samples=self.config.batch_size, seed=ctx.seed)
        labels = None if samples.labels is None else torch.from_numpy(samples.labels)
        return batch_from_images(torch.from_numpy(samples.images), labels, classes=_classes(teacher), seed=ctx.seed)

    def _terms(self, inputs: Inputs, batch: Batch, ctx: Context) -> Terms:
        config, bundle = self.config, inputs.one("teacher")
        recipe, teacher = bundle.model, module_from_bundle(bundle, ctx.blobs)
        task = Task(
            preprocessing=recipe.preprocessing,
            labels=recipe.labels,
            classes=_classes(bundle),
            channel_multiple=config.channel_multiple,
            teacher=Teacher(recipe=recipe, module=teacher, images=batch.images),
        )
        space = SPACES.get(config.space)(task)
        model = self._latency_model(inputs, ctx)
        error = None if model is None else model.relative_error
        shape = recipe.preprocessing.input_shape
        costs = Costs(space, input_shape=shape, model=model, precision=config.precision)
        return Terms(
            config=config,
            space=space,
            ranking=ranking_from_name(config.proxy),
            costs=costs,
            limit=self._limit(costs.of_module(teacher), costs.of(space.cheapest), error),
            relative_error=error,
        )

    def _latency_model(self, inputs: Inputs, ctx: Context) -> LatencyModel | None:
        fitted = inputs.maybe("latency_model")
        if fitted is None:
            return self.config.latency_model
        return report_from_bundle(fitted, LatencyModel, ctx, "latency_model")

    def _limit(self, teacher: Cost, cheapest: Cost, relative_error: float | None) -> Limit:
        config = self.config
        limit = student_limit(
            teacher,
            cheapest,
            budget_ms=config.budget_ms,
            teacher_share=config.teacher_share,
            relative_error=relative_error,
        )
        return reachable_limit(limit, cheapest, teacher=teacher, budget_ms=config.budget_ms, space=config.space)


def _classes(teacher: ModelBundle) -> int:
    return int(teacher.outputs[0].shape[-1])


def _metrics(report: SearchReport) -> dict[str, JsonValue]:
    best = report.picks[0]
    metrics: dict[str, JsonValue] = {
        "evaluated": len(report.evaluated),
        "skipped": len(report.skipped),
        "rejected": report.rejected,
        "front": len(report.front),
        "params_m": best.params_m,
        "macs_m": best.macs_m,
    }
    return metrics if best.predicted_ms is None else metrics | {"predicted_ms": best.predicted_ms}
