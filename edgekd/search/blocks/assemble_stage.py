"""The stage `assemble`: a student of a teacher's blocks and their replacements, the best that keeps the limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from pydantic import Field, JsonValue
from torch import nn

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.recipe import Edit
from edgekd.core.report_io import report_from_bundle
from edgekd.core.stage import Context, Inputs, Stage, StageConfig, StageResult, port
from edgekd.core.text import ms, significant
from edgekd.errors import BuildFailed, UserError
from edgekd.nn.build import WEIGHTS_FILE, module_from_bundle
from edgekd.nn.save import bundle_from_module
from edgekd.search.blocks.assemble import Menu, Option, assembled, menu, rows_of
from edgekd.search.blocks.chain import split_edits_
from edgekd.search.blocks.choose import best_sets
from edgekd.search.blocks.costs import Pricing
from edgekd.search.blocks.local import LocalTraining
from edgekd.search.blocks.report import BLOCKS_FILE, LibraryReport, load_states
from edgekd.search.blocks.score import Judge
from edgekd.search.limit import Cost, Limit, reachable_limit, student_limit
from edgekd.targets.latency import LatencyModel
from edgekd.targets.schema import Precision
from edgekd.train.engine import torch_settings

_ROUNDING = 1e-6
"""Relative difference that the order of a sum may make."""


class AssembleConfig(StageConfig):
    """Under which limit to choose, and how many sets to try.

    Attributes:
        budget_ms: Limit on the predicted latency at batch 1; None limits the student to `teacher_share` of the teacher.
        teacher_share: Largest cost as a share of the teacher's, without a budget.
        precision: The student will be deployed in it.
        latency_model: Of the device; a model on the port `latency_model` comes before it.
        settling: A short joint training of each set on the library's images, before sets are compared; None for none.
        tried: Sets that are assembled and scored as a whole, for sums of single divergences mislead where much changes.
        differ: A further set leaves out at least so many choices of each better one.
    """

    budget_ms: float | None = Field(default=None, gt=0)
    teacher_share: float = Field(default=0.25, gt=0, le=1)
    precision: Precision = "fp32"
    latency_model: LatencyModel | None = None
    settling: LocalTraining | None = Field(default=LocalTraining(epochs=2, lr=2e-3))
    tried: int = Field(default=8, ge=1)
    differ: int = Field(default=2, ge=1)


@dataclass(frozen=True, kw_only=True)
class _Student:
    module: nn.Module
    edits: tuple[Edit, ...]
    chosen: tuple[Option, ...]
    cost: Cost
    kl: float

    @property
    def expected_kl(self) -> float:
        return sum(option.choice.score for option in self.chosen)


class AssembleStage(Stage[AssembleConfig]):
    """The teacher with the set of replacements that diverges least from it within the limit.

    The set with the least sum of single divergences is found exactly; the best few are then assembled, trained together
    for a moment, and compared as a whole.
    """

    name = "assemble"
    Config = AssembleConfig
    ports: ClassVar = {
        "teacher": port(BundleKind.TORCH),
        "library": port(BundleKind.REPORT),
        "latency_model": port(BundleKind.REPORT, optional=True),
    }
    produces = BundleKind.TORCH
    reads = frozenset({"data"})

    def requires(self, inputs: Inputs, ctx: Context) -> None:
        config = self.config
        if config.budget_ms is not None and config.latency_model is None and inputs.maybe("latency_model") is None:
            raise UserError(
                f"Blocks are chosen under a budget of {config.budget_ms:g} ms, which needs a latency model of the "
                "device.",
                hint="connect a latency-model node to the port 'latency_model', or give assemble.latency_model",
            )

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        bundle, library = inputs.one("teacher"), inputs.one("library")
        shape = bundle.model.preprocessing.input_shape
        teacher = module_from_bundle(bundle, ctx.blobs)
        split = split_edits_(teacher)
        report = report_from_bundle(library, LibraryReport, ctx, "library")
        model = self._latency_model(inputs, ctx)
        pricing = Pricing(model, self.config.precision)
        offered = menu(teacher, report, pricing, shape)
        limit = self._limit(pricing.of_network(teacher, shape), offered, model)
        students = self._students(teacher, offered, limit, pricing, report, inputs, ctx)
        best = min(students, key=lambda student: student.kl)
        recipe = bundle.model
        for edit in (*split, *best.edits):
            recipe = recipe.with_edit(edit)
        made = bundle_from_module(best.module, recipe=recipe, blobs=ctx.blobs, scratch=ctx.scratch, carry=bundle)
        _check_reload(best.module, made, ctx)
        return StageResult(
            bundle=made,
            metrics={**_metrics(best, offered), "size_mib": ctx.path(made, WEIGHTS_FILE).stat().st_size / 2**20},
            decisions=(limit.reason, *_decisions(students, best, offered)),
        )

    def ensures(self, inputs: Inputs, result: StageResult, ctx: Context) -> None:
        before, after = inputs.one("teacher"), result.bundle
        if (before.inputs, before.outputs) != (after.inputs, after.outputs):
            raise BuildFailed(f"Replacing blocks changed the outputs: {before.outputs} became {after.outputs}.")

    def _latency_model(self, inputs: Inputs, ctx: Context) -> LatencyModel | None:
        fitted = inputs.maybe("latency_model")
        if fitted is None:
            return self.config.latency_model
        return report_from_bundle(fitted, LatencyModel, ctx, "latency_model")

    def _limit(self, teacher: Cost, offered: Menu, model: LatencyModel | None) -> Limit:
        """What the student may cost; where the teacher itself keeps the budget, its share, for a copy serves nobody."""
        config, cheapest = self.config, _cheapest(offered, teacher)
        error = None if model is None else model.relative_error
        share = student_limit(
            teacher, cheapest, budget_ms=None, teacher_share=config.teacher_share, relative_error=error
        )
        limit = share
        if config.budget_ms is not None:
            limit = student_limit(
                teacher,
                cheapest,
                budget_ms=config.budget_ms,
                teacher_share=config.teacher_share,
                relative_error=error,
            )
        if config.budget_ms is not None and limit.value >= teacher.compared:
            reason = (
                f"The teacher itself is predicted to keep {ms(config.budget_ms)}: its blocks are replaced for speed, "
                f"and the student is predicted to take at most {ms(share.value)}."
            )
            limit = replace(share, reason=reason)
        return reachable_limit(limit, cheapest, teacher=teacher, budget_ms=config.budget_ms, space="blocks")

    def _students(
        self,
        teacher: nn.Module,
        offered: Menu,
        limit: Limit,
        pricing: Pricing,
        report: LibraryReport,
        inputs: Inputs,
        ctx: Context,
    ) -> list[_Student]:
        """The best sets, each assembled and compared with the teacher on the images that the library held out."""
        states = load_states(ctx.path(inputs.one("library"), BLOCKS_FILE))
        p = inputs.one("teacher").model.preprocessing
        students: list[_Student] = []
        sets = _sets(offered, limit, self.config)
        with torch_settings(ctx.execution, ctx.seed):
            judge = Judge(teacher, report, p, ctx)
            for number, chosen in enumerate(sets):
                module, edits = assembled(teacher, offered.blocks, chosen, states)
                cost = pricing.of_network(module, p.input_shape)
                # Where nothing is replaced there is nothing to settle.
                kl = judge.settled_(module, self.config.settling, ctx.seed) if edits else 0.0
                students.append(_Student(module=module, edits=edits, chosen=chosen, cost=cost, kl=kl))
                ctx.reporter.progress("assemble", number + 1, len(sets))
        # By its parts each one is within the limit; kernels that fuse across parts may make the whole differ.
        return [one for one in students if one.cost.compared <= limit.value * (1 + _ROUNDING)] or [
            min(students, key=lambda student: student.cost.compared)
        ]


def _sets(offered: Menu, limit: Limit, config: AssembleConfig) -> list[tuple[Option, ...]]:
    """The best sets within the limit; the first has the least sum of divergences.

    A divergence is quadratic in a small error of the logits. Errors that have nothing to do with each other add up in
    their squares, so divergences do; errors that point the same way add up themselves, so square roots of divergences
    do. Which it is nobody knows beforehand, so half of the sets are the best under either assumption.
    """
    bounds = (limit.value - offered.rest[0], limit.params - offered.rest[1], math.inf)
    found: list[tuple[int, ...]] = []
    for power, count in ((1.0, -(-config.tried // 2)), (0.5, config.tried // 2)):
        choices = [replace(o.choice, score=o.choice.score**power) for o in offered.options]
        if count:
            found += best_sets(
                choices, len(offered.blocks), bounds, apart=offered.apart, count=count, differ=config.differ
            )
    return [tuple(sorted((offered.options[i] for i in one), key=_place)) for one in dict.fromkeys(found)]


def _place(option: Option) -> int:
    return option.choice.first


def _cheapest(offered: Menu, teacher: Cost) -> Cost:
    """The least that any set costs."""
    choices = [replace(option.choice, score=option.choice.costs[0]) for option in offered.options]
    ((*chosen,),) = best_sets(choices, len(offered.blocks), (), apart=offered.apart)
    compared, params, macs = offered.cost([offered.options[index] for index in chosen])
    # Keeping all blocks is a set too; its parts may add up to a hair more than the whole.
    predicted = None if teacher.predicted_ms is None else min(compared, teacher.predicted_ms)
    return Cost(predicted_ms=predicted, params=round(params), macs=round(macs))


def _check_reload(student: nn.Module, bundle: ModelBundle, ctx: Context) -> None:
    """Builds the bundle's module and compares it with the assembled one, on one random image."""
    random = torch.Generator().manual_seed(0)
    images = torch.randn(1, *bundle.model.preprocessing.input_shape, generator=random)
    with torch.inference_mode():
        same = torch.equal(student(images), module_from_bundle(bundle, ctx.blobs)(images))
    if not same:
        raise BuildFailed(
            "The assembled student, rebuilt from its recipe and weights, gives other outputs than the one in memory.",
            hint="the network keeps state outside of its state dict; leave `blocks` out of --students",
        )


def _metrics(best: _Student, offered: Menu) -> dict[str, JsonValue]:
    metrics: dict[str, JsonValue] = {
        "params_m": best.cost.params / 1e6,
        "macs_m": best.cost.macs / 1e6,
        "kl": best.kl,
        "kl_expected": best.expected_kl,
        "blocks": list(rows_of(offered, best.chosen)),
    }
    return metrics if best.cost.predicted_ms is None else metrics | {"predicted_ms": best.cost.predicted_ms}


def _decisions(students: Sequence[_Student], best: _Student, offered: Menu) -> tuple[str, ...]:
    if not best.edits:
        return ("No block had to be replaced to keep the limit: the student begins as the teacher itself.",)
    parts = []
    for option in best.chosen:
        if option.replacement is not None:
            first, last = (offered.blocks[index].path for index in (option.choice.first, option.choice.last))
            parts.append(f"{first} by {option.name}" if first == last else f"{first} to {last} by {option.name}")
    kept = sum(option.replacement is None for option in best.chosen)
    least = students[0].expected_kl
    other = "" if best is students[0] else f"; the least sum of all sets, {significant(least)}, did not hold"
    return (
        f"{len(offered.options)} options for {len(offered.blocks)} blocks: {kept} blocks are kept, "
        f"and replaced are {', '.join(parts)}.",
        f"Of the {len(students)} best sets this one diverges least from the teacher as a whole, by "
        f"{significant(best.kl)} nats; its single divergences add up to {significant(best.expected_kl)}{other}.",
    )
