"""The prune stage: a trained network with fewer channels, which later stages distil back to its accuracy."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field, JsonValue
from torch import nn

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.report_io import report_from_bundle
from edgekd.core.stage import Context, Inputs, Stage, StageConfig, StageResult, port
from edgekd.core.text import ms, percent
from edgekd.errors import BuildFailed, UserError
from edgekd.nn.build import WEIGHTS_FILE, is_trainable, module_from_bundle
from edgekd.nn.channels.analysis import Analysis, analyse
from edgekd.nn.channels.apply import Removal, remove_channels_
from edgekd.nn.channels.importance import Importance, has_scale, unit_scores
from edgekd.nn.count import count_macs, count_params, layer_costs
from edgekd.nn.edits import resize_edit
from edgekd.nn.reparam import reparameterised
from edgekd.nn.save import bundle_from_module
from edgekd.prune.schedule import MacModel, plan_removals
from edgekd.targets.latency import LatencyModel
from edgekd.targets.schema import Precision

_STEP = 0.85
"""With a budget, the share that may remain shrinks by this factor until the prediction fits."""
_NAMED = 4
"""How many groups that stay whole for one reason are named in a decision."""


class PruneConfig(StageConfig):
    """How much to cut, and how to choose it.

    Attributes:
        macs_keep: Largest share of the multiply-accumulates that may remain.
        budget_ms: Cut on until the predicted latency at batch 1 keeps this; None stops at `macs_keep`.
        precision: The pruned network will be deployed in it; decides its predicted latency.
        latency_model: Of the device, for `budget_ms`; a model on the port `latency_model` comes before it.
        macs_floor: With a budget: smallest share that may remain, since a network cut to less rarely recovers. When
            even that misses the budget, `macs_keep` is kept.
        channel_multiple: Widths that shrink end at a multiple of this, which the device likes; halved, and said so,
            when the network cannot reach `macs_keep` with it.
        importance: How units are ranked: see `edgekd.nn.channels.importance`.
        scope: `uniform` shrinks all groups by about the same share; `global` lets them compete by importance.
        exclude: Paths or glob patterns of modules whose output channels all stay.
    """

    macs_keep: float = Field(gt=0, lt=1)
    budget_ms: float | None = Field(default=None, gt=0)
    precision: Precision = "fp32"
    latency_model: LatencyModel | None = None
    macs_floor: float = Field(default=0.2, gt=0, lt=1)
    channel_multiple: int = Field(default=8, ge=1)
    importance: Importance = "l2"
    scope: Literal["uniform", "global"] = "uniform"
    exclude: tuple[str, ...] = ()


class PruneStage(Stage[PruneConfig]):
    """Removes whole channels and attention heads, with everything that is coupled to them.

    Only groups that are proved to be removable are touched (`edgekd.nn.channels.proof`); the others are named in the
    decisions. The output rebuilds from its recipe without the pruner, bit for bit.
    """

    name = "prune"
    Config = PruneConfig
    ports: ClassVar = {"model": port(BundleKind.TORCH), "latency_model": port(BundleKind.REPORT, optional=True)}
    produces = BundleKind.TORCH

    def requires(self, inputs: Inputs, ctx: Context) -> None:
        if not is_trainable(inputs.one("model").model):
            raise UserError(
                "This model cannot be pruned: its program could not be rebuilt into layers.",
                hint="give a state dict with --arch, or leave the prune stage out",
            )
        if self.config.budget_ms is not None and not (self.config.latency_model or inputs.maybe("latency_model")):
            raise UserError(
                f"Pruning to {self.config.budget_ms:g} ms needs a latency model of the device, and has none.",
                hint="connect a latency-model node to the port 'latency_model', or give prune.latency_model",
            )

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
        removals, multiple, said = self._plan_for_budget(module, shape, analysis, self._latency_model(inputs, ctx))
        if not analysis.proof.holds(removals):
            names = ", ".join(group.name for group, _ in removals)
            raise BuildFailed(
                f"The planned cut does not compute what the masked network computes, although each of its groups does: "
                f"{names}.",
                hint="exclude some of them with prune.exclude",
            )
        pruned = copy.deepcopy(module)
        remove_channels_(pruned, removals)
        recipe = before.model.with_edit(resize_edit(module, pruned))
        after = bundle_from_module(pruned, recipe=recipe, blobs=ctx.blobs, scratch=ctx.scratch, carry=before)
        _check_reload(pruned, after, ctx)
        return StageResult(
            bundle=after,
            metrics=_metrics(module, pruned, shape)
            | {"size_mib": ctx.path(after, WEIGHTS_FILE).stat().st_size / 2**20},
            decisions=(*said, *self._decisions(module, analysis, removals, multiple)),
        )

    def ensures(self, inputs: Inputs, result: StageResult, ctx: Context) -> None:
        before, after = inputs.one("model"), result.bundle
        shape = before.model.preprocessing.input_shape
        had, has = (count_macs(module_from_bundle(bundle, ctx.blobs), shape) for bundle in (before, after))
        if has > self.config.macs_keep * had:
            raise BuildFailed(
                f"Pruning was to keep at most {percent(self.config.macs_keep)} of {had:,} multiply-accumulates, but "
                f"the pruned network has {has:,}."
            )
        if (before.inputs, before.outputs) != (after.inputs, after.outputs):
            raise BuildFailed(f"Pruning changed the outputs of the network: {before.outputs} became {after.outputs}.")

    def _latency_model(self, inputs: Inputs, ctx: Context) -> LatencyModel | None:
        fitted = inputs.maybe("latency_model")
        if self.config.budget_ms is None or fitted is None:
            return self.config.latency_model
        return report_from_bundle(fitted, LatencyModel, ctx, "latency_model")

    def _plan_for_budget(
        self, module: nn.Module, shape: tuple[int, int, int], analysis: Analysis, model: LatencyModel | None
    ) -> tuple[Sequence[Removal], int, tuple[str, ...]]:
        """The units to remove, the channel multiple it took, and what the budget had to do with it."""
        config, keep = self.config, self.config.macs_keep
        removals, multiple = self._plan(module, shape, analysis, keep)
        if config.budget_ms is None or model is None:
            return removals, multiple, ()
        loose = removals, multiple
        while (predicted := self._predicted_ms(module, shape, removals, model)) > config.budget_ms:
            keep *= _STEP
            if keep < config.macs_floor:
                # No cut that can recover is fast enough, so a deeper one would only cost accuracy.
                said = (
                    f"Even {percent(keep / _STEP)} of the multiply-accumulates would take a predicted {ms(predicted)} "
                    f"({config.precision}), more than {ms(config.budget_ms)}: {percent(config.macs_keep)} are kept."
                )
                return *loose, (said,)
            removals, multiple = self._plan(module, shape, analysis, keep)
        said = (
            f"Cut to at most {percent(keep)} of the multiply-accumulates: the predicted {ms(predicted)} "
            f"({config.precision}) keeps the budget of {ms(config.budget_ms)}."
        )
        return removals, multiple, (said,)

    def _predicted_ms(
        self, module: nn.Module, shape: tuple[int, int, int], removals: Sequence[Removal], model: LatencyModel
    ) -> float:
        cut = copy.deepcopy(module)
        remove_channels_(cut, removals)
        return model.predict_ms(layer_costs(reparameterised(cut), shape), self.config.precision)

    def _plan(
        self, module: nn.Module, shape: tuple[int, int, int], analysis: Analysis, keep: float
    ) -> tuple[Sequence[Removal], int]:
        """The units to remove so that at most `keep` of the MACs remain, and the channel multiple it took."""
        costs = layer_costs(module, shape)
        scores = {group.name: unit_scores(module, group, self.config.importance) for group in analysis.groups}
        multiple = self.config.channel_multiple
        while True:
            macs = MacModel(module, costs, analysis.groups)
            target = keep * macs.total
            removals = plan_removals(
                analysis.groups, scores, macs, target=target, multiple=multiple, across=self.config.scope == "global"
            )
            if macs.now <= target:
                return removals, multiple
            if multiple == 1:
                raise BuildFailed(
                    f"Pruning cannot keep as little as {percent(keep)} of the multiply-accumulates: "
                    f"the {len(analysis.groups)} groups of channels that can be cut reach "
                    f"{percent(macs.now / macs.total)}. {_kept_whole(analysis)}".rstrip(),
                    hint=f"ask for macs_keep {macs.now / macs.total + 0.01:.2f} or more",
                )
            multiple //= 2

    def _decisions(
        self, module: nn.Module, analysis: Analysis, removals: Sequence[Removal], multiple: int
    ) -> tuple[str, ...]:
        config = self.config
        lines = [
            f"{len(removals)} of {len(analysis.groups)} groups of channels were cut, ranked by {config.importance}."
        ]
        if analysis.kept_whole:
            lines.append(_kept_whole(analysis))
        if multiple != config.channel_multiple:
            lines.append(
                f"Widths end at multiples of {multiple}, not {config.channel_multiple}: with that the network cannot "
                f"reach {percent(config.macs_keep)} of its multiply-accumulates."
            )
        unscaled = sum(not has_scale(module, group) for group in analysis.groups)
        if config.importance == "bn" and unscaled:
            lines.append(f"{unscaled} groups have no BatchNorm and were ranked by l2 instead.")
        return tuple(lines)


def _kept_whole(analysis: Analysis) -> str:
    """One sentence that names the groups that stay whole, by reason; empty when there are none."""
    by_reason: dict[str, list[str]] = {}
    for name, why in analysis.kept_whole.items():
        by_reason.setdefault(why, []).append(name)
    parts = []
    for why, names in by_reason.items():
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        parts.append(f"{', '.join(names[:_NAMED])}{more} ({why})")
    return f"Kept whole: {'; '.join(parts)}." if parts else ""


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
