"""The prune stage: a trained network with fewer channels, which later stages distil back to its accuracy."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.report_io import report_from_bundle
from edgekd.core.stage import Context, Inputs, Stage, StageResult, port
from edgekd.core.text import counted, percent
from edgekd.errors import BuildFailed, UserError
from edgekd.nn.build import WEIGHTS_FILE, is_trainable, module_from_bundle
from edgekd.nn.channels.analysis import Analysis, analyse
from edgekd.nn.channels.apply import channels_along, is_channelwise, remove_channels_
from edgekd.nn.count import count_macs, count_params
from edgekd.nn.edits import resize_edit
from edgekd.nn.save import bundle_from_module
from edgekd.prune.config import PruneConfig
from edgekd.prune.evidence import check_evidence, gathered
from edgekd.prune.importance import build_importance, needs_of, scores_of
from edgekd.prune.plan import Plan, Planner, kept_whole_in_words
from edgekd.prune.table import check_table
from edgekd.targets.latency import LatencyModel
from edgekd.targets.latency_table import LatencyTable

_NOT_COMPARABLE = (
    "The scores of {} say little of how groups compare, and a cut along the latency adds them up: lamp, fisher or kd "
    "rank better for it."
)

_NAMED = 3
"""How many layers of a width that the device does not like are named."""


class PruneStage(Stage[PruneConfig]):
    """Removes whole channels and attention heads, with everything that is coupled to them.

    Only groups that are proved to be removable are touched (`edgekd.nn.channels.proof`); the others are named in the
    decisions. The output rebuilds from its recipe without the pruner, bit for bit.
    """

    name = "prune"
    version = 4
    Config = PruneConfig
    ports: ClassVar = {
        "model": port(BundleKind.TORCH),
        "teacher": port(BundleKind.TORCH, optional=True),
        "latency_model": port(BundleKind.REPORT, optional=True),
        "latency_table": port(BundleKind.REPORT, optional=True),
    }
    produces = BundleKind.TORCH
    reads = frozenset({"data"})

    def resources_read(self) -> frozenset[str]:
        """The data, where the importance looks at images."""
        return self.reads if needs_of(self.config.importance) else frozenset()

    def requires(self, inputs: Inputs, ctx: Context) -> None:
        if not is_trainable(inputs.one("model").model):
            raise UserError(
                "This model cannot be pruned: its program could not be rebuilt into layers.",
                hint="give a state dict with --arch, or leave the prune stage out",
            )
        if self.config.predicts and not (self.config.latency_model or inputs.maybe("latency_model")):
            budget = self.config.budget_ms
            wish = "along the latency" if budget is None else f"to {budget:g} ms"
            raise UserError(
                f"Pruning {wish} needs a latency model of the device, and has none.",
                hint="connect a latency-model node to the port 'latency_model', or give prune.latency_model",
            )
        if self.config.follow == "measured" and inputs.maybe("latency_table") is None:
            raise UserError(
                "Pruning along measured latencies needs a latency table of this network, and has none.",
                hint="connect a latency-table node to the port 'latency_table'",
            )
        check_evidence(self.config, inputs, ctx)

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        before = inputs.one("model")
        shape = before.model.preprocessing.input_shape
        module = module_from_bundle(before, ctx.blobs)
        analysis = analyse(
            module,
            shape,
            exclude=self.config.exclude,
            on_progress=lambda done, total: ctx.reporter.progress("proving channel groups", done, total),
        )
        importance = build_importance(self.config.importance)
        with gathered(self.config, module, inputs, ctx) as (evidence, said):
            scores = scores_of(importance, evidence, analysis.groups)
            said += importance.remarks(evidence, analysis.groups)
        if self.config.follow != "macs" and not importance.comparable:
            said += (_NOT_COMPARABLE.format(importance.name),)
        planner = self._planner(module, analysis, scores, inputs, ctx)
        plan = planner.plan()
        if not analysis.proof.holds(plan.removals):
            analysis, apart = _without_incompatible(analysis, plan)
            said = (apart, *said)
            planner = self._planner(module, analysis, scores, inputs, ctx)
            plan = planner.plan()
            _check_plan(plan, analysis)
        pruned = copy.deepcopy(module)
        remove_channels_(pruned, plan.removals)
        recipe = before.model.with_edit(resize_edit(module, pruned))
        after = bundle_from_module(pruned, recipe=recipe, blobs=ctx.blobs, scratch=ctx.scratch, carry=before)
        _check_reload(pruned, after, ctx)
        widths = _widths(module, pruned)
        lost = sum(float(scores[group.name][units].sum()) for group, units in plan.removals)
        return StageResult(
            bundle=after,
            metrics=_metrics(module, pruned, shape)
            | _predictions(planner, plan)
            | {
                "importance_lost": lost / sum(float(values.abs().sum()) for values in scores.values()),
                "size_mib": ctx.path(after, WEIGHTS_FILE).stat().st_size / 2**20,
                "widths": {path: list(pair) for path, pair in widths.items()},
            },
            decisions=(*plan.said, *self._decisions(analysis, plan, widths), *said),
        )

    def ensures(self, inputs: Inputs, result: StageResult, ctx: Context) -> None:
        before, after = inputs.one("model"), result.bundle
        shape = before.model.preprocessing.input_shape
        had, has = (count_macs(module_from_bundle(bundle, ctx.blobs), shape) for bundle in (before, after))
        # Along the latency a cut ends where nothing more makes the engine faster; else it may end where groups end.
        gives_way = self.config.follow != "macs" or not self.config.strict
        most = had if gives_way else self.config.macs_keep * had
        if has > most:
            raise BuildFailed(
                f"Pruning was to keep at most {percent(self.config.macs_keep)} of {had:,} multiply-accumulates, but "
                f"the pruned network has {has:,}."
            )
        if (before.inputs, before.outputs) != (after.inputs, after.outputs):
            raise BuildFailed(f"Pruning changed the outputs of the network: {before.outputs} became {after.outputs}.")

    def _planner(
        self, module: nn.Module, analysis: Analysis, scores: Mapping[str, Tensor], inputs: Inputs, ctx: Context
    ) -> Planner:
        return Planner(
            self.config,
            module,
            inputs.one("model").model.preprocessing.input_shape,
            analysis,
            scores,
            self._latency_model(inputs, ctx),
            self._latency_table(inputs, analysis, ctx),
            on_progress=lambda done, total: ctx.reporter.progress("pricing channel groups", done, total),
        )

    def _latency_model(self, inputs: Inputs, ctx: Context) -> LatencyModel | None:
        fitted = inputs.maybe("latency_model")
        if not self.config.predicts or fitted is None:
            return self.config.latency_model
        return report_from_bundle(fitted, LatencyModel, ctx, "latency_model")

    def _latency_table(self, inputs: Inputs, analysis: Analysis, ctx: Context) -> LatencyTable | None:
        found = inputs.maybe("latency_table")
        if self.config.follow != "measured" or found is None:
            return None
        table = report_from_bundle(found, LatencyTable, ctx, "latency_table")
        check_table(table, analysis.groups, self.config.precision)
        return table

    def _decisions(self, analysis: Analysis, plan: Plan, widths: Mapping[str, tuple[int, int]]) -> tuple[str, ...]:
        config = self.config
        lines = [
            f"{len(plan.removals)} of {len(analysis.groups)} groups of channels were cut, ranked by "
            f"{config.importance}.{_alignment_in_words(widths, config.channel_multiple)}"
        ]
        if analysis.kept_whole:
            lines.append(kept_whole_in_words(analysis))
        if plan.multiple != config.channel_multiple:
            lines.append(
                f"Widths end at multiples of {plan.multiple}, not {config.channel_multiple}: with that the network "
                f"cannot reach {percent(config.macs_keep)} of its multiply-accumulates."
            )
        return tuple(lines)


def _without_incompatible(analysis: Analysis, plan: Plan) -> tuple[Analysis, str]:
    """The analysis without the groups that do not hold beside the rest of the plan, and a sentence that names them."""
    taken = {group.name for group, _ in analysis.proof.compatible(plan.removals)}
    apart = [group.name for group, _ in plan.removals if group.name not in taken]
    left = replace(
        analysis,
        groups=tuple(group for group in analysis.groups if group.name not in apart),
        kept_whole={**analysis.kept_whole, **dict.fromkeys(apart, "it can be cut alone, but not beside the others")},
    )
    said = f"Planned anew without {', '.join(apart)}: beside the others, the cut network is not the masked one."
    return left, said


def _check_plan(plan: Plan, analysis: Analysis) -> None:
    """Proves the cut as a whole."""
    if (why := analysis.proof.why_not(plan.removals)) is not None:
        names = ", ".join(group.name for group, _ in plan.removals)
        raise BuildFailed(
            f"The planned cut of {names} does not hold, although each of its groups does: {why}.",
            hint="exclude some of them with prune.exclude",
        )


def _widths(before: nn.Module, after: nn.Module) -> dict[str, tuple[int, int]]:
    """Output channels before and after, by path of each convolution and linear layer that makes fewer of them."""
    found, cut = {}, dict(after.named_modules())
    for path, part in before.named_modules():
        if isinstance(part, nn.Conv2d | nn.Linear) and not is_channelwise(part):
            had, has = channels_along(part, "out"), channels_along(cut[path], "out")
            if has < had:
                found[path] = had, has
    return found


def _alignment_in_words(widths: Mapping[str, tuple[int, int]], multiple: int) -> str:
    """How many of the cut layers have a width that the device likes, after a space; empty where it likes any."""
    if multiple == 1 or not widths:
        return ""
    odd = [f"{path} ({has})" for path, (_, has) in widths.items() if has % multiple]
    more = f" and {len(odd) - _NAMED} more" if len(odd) > _NAMED else ""
    but = f", all but {', '.join(odd[:_NAMED])}{more}" if odd else ""
    return (
        f" {len(widths) - len(odd)} of the {counted(len(widths), 'layer')} that got narrower have a multiple of "
        f"{multiple} channels{but}."
    )


def _predictions(planner: Planner, plan: Plan) -> dict[str, JsonValue]:
    """Latencies before and after by the model or the table, where there is one; neither is a measurement of the cut."""
    found = {"predicted_before_ms": planner.predicted_ms(), "predicted_ms": planner.predicted_ms(plan.removals)}
    return {name: value for name, value in found.items() if value is not None}


def _metrics(before: nn.Module, after: nn.Module, shape: tuple[int, int, int]) -> dict[str, JsonValue]:
    had, has = count_macs(before, shape), count_macs(after, shape)
    return {
        "params_before_m": count_params(before) / 1e6,
        "params_m": count_params(after) / 1e6,
        "macs_before_m": had / 1e6,
        "macs_m": has / 1e6,
        "macs_kept": has / had,
    }


def _check_reload(pruned: nn.Module, bundle: ModelBundle, ctx: Context) -> None:
    """Builds the bundle's module and compares it with the pruned one, on one random image."""
    random = torch.Generator().manual_seed(0)
    images = torch.randn(1, *bundle.model.preprocessing.input_shape, generator=random)
    with torch.inference_mode():
        same = torch.equal(pruned(images), module_from_bundle(bundle, ctx.blobs)(images))
    if not same:
        raise BuildFailed(
            "The pruned network, rebuilt from its recipe and weights, gives other outputs than the one in memory.",
            hint="the network keeps state outside of its state dict; leave the prune stage out",
        )
