"""The stage that builds one of the students that a search put forward."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, JsonValue

from edgekd.core.bundle import BundleKind
from edgekd.core.report_io import report_from_bundle
from edgekd.core.stage import Context, Inputs, Stage, StageConfig, StageResult, port
from edgekd.nn.build import WEIGHTS_FILE, module_from_bundle, module_from_recipe
from edgekd.nn.count import count_macs, count_params
from edgekd.nn.reparam import reparameterised
from edgekd.nn.save import bundle_from_module
from edgekd.search.report import SearchReport
from edgekd.search.space import SPACES


class PickConfig(StageConfig):
    """Which student of a search goes on.

    Attributes:
        rank: 0 is the best.
    """

    rank: int = Field(default=0, ge=0)


class PickStage(Stage[PickConfig]):
    """One student of a search, ready to be trained: its weights drawn from the run's seed, or taken from the teacher.

    Where fewer students fit the limit than were wished for, the branches beyond them repeat the last one: an equal
    network has an equal key, so whatever comes after is taken from its branch and nothing is trained twice.
    """

    name = "pick"
    version = 2
    Config = PickConfig
    ports: ClassVar = {"search": port(BundleKind.REPORT), "teacher": port(BundleKind.TORCH, optional=True)}
    produces = BundleKind.TORCH

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        report = report_from_bundle(inputs.one("search"), SearchReport, ctx, "search")
        rank = min(self.config.rank, len(report.picks) - 1)
        pick = report.picks[rank]
        decisions = [f"{pick.text}: {pick.reason}"]
        if rank < self.config.rank:
            decisions.insert(
                0,
                f"The search found no student {self.config.rank + 1} within the limit: this branch repeats student "
                f"{rank + 1}, and its stages are taken from there.",
            )
        module = module_from_recipe(pick.recipe, seed=ctx.seed)
        teacher = inputs.maybe("teacher")
        if teacher is not None:
            space, shape = SPACES.get(report.space), pick.recipe.preprocessing.input_shape
            decisions += space.initialise_(module, module_from_bundle(teacher, ctx.blobs), shape)
        bundle = bundle_from_module(module, recipe=pick.recipe, blobs=ctx.blobs, scratch=ctx.scratch)
        deployed = reparameterised(module)
        metrics: dict[str, JsonValue] = {
            "params_m": count_params(deployed) / 1e6,
            "macs_m": count_macs(deployed, pick.recipe.preprocessing.input_shape) / 1e6,
            "size_mib": ctx.path(bundle, WEIGHTS_FILE).stat().st_size / 2**20,
        }
        if pick.predicted_ms is not None:
            metrics["predicted_ms"] = pick.predicted_ms
        return StageResult(bundle=bundle, metrics=metrics, decisions=tuple(decisions))
