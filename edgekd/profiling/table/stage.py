"""The `latency-table` node: how fast a network is on the target with its groups of channels at several widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from pydantic import Field, JsonValue

from edgekd.core.blobs import FolderBlobs
from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.report import LatencyReport
from edgekd.core.report_io import bundle_from_report, report_from_bundle
from edgekd.core.rounds import round_medians
from edgekd.core.stage import Context, Inputs, Stage, StageConfig, StageResult, port
from edgekd.core.text import counted, ms
from edgekd.errors import BuildFailed, DeviceUnavailable, EdgekdError, UserError
from edgekd.nn.build import is_trainable, module_from_bundle
from edgekd.nn.channels.analysis import analyse
from edgekd.nn.channels.groups import ChannelGroup
from edgekd.nn.channels.widths import Corrections, WidthLatency
from edgekd.profiling.table.device import Device, Latencies, Manner, device_for
from edgekd.profiling.table.effective import Series, calibrated
from edgekd.profiling.table.engines import Workshop
from edgekd.profiling.table.kinds import Kind, kinds_of, within
from edgekd.targets.latency import LatencyModel, latency_model_from_target
from edgekd.targets.latency_table import LatencyTable, Timed, TimedKind
from edgekd.targets.schema import Precision, Target

WHOLE = "whole"
_NAMED = 4
"""How many groups that are left out are named in a decision."""


class LatencyTableConfig(StageConfig):
    """What to time, and how long.

    Attributes:
        precision: That the pruned network will be deployed in.
        channel_multiple: Widths that are timed are multiples of this, as those are at which a cut ends.
        threads: CPU threads; use those that the profile is judged at.
        runtime: Registry name; None takes the first of the target's card that is there and runs the precision.
        opset: ONNX opset of the engines.
        widths: Of each kind of groups, at most.
        engines: In all, at most; kinds that can save much time come first, and those left out keep the prediction.
        duration_s: Timed running of each engine, at most.
        interval: Stop early when the 95 % interval of each engine's ratio to the whole one is narrower than this; on a
            board, when that of each median is narrower than this fraction of it.
    """

    precision: Precision = "fp32"
    channel_multiple: int = Field(default=8, ge=1)
    threads: int = Field(default=1, ge=1)
    runtime: str | None = None
    opset: int = Field(default=20, ge=17)
    widths: int = Field(default=8, ge=1)
    engines: int = Field(default=24, ge=2)
    duration_s: float = Field(default=2.0, gt=0)
    interval: float = Field(default=0.01, gt=0)


@dataclass(frozen=True, kw_only=True)
class _Cut:
    """All groups of a kind at one width, and the engine's name."""

    name: str
    kind: Kind
    kept: int


class LatencyTableStage(Stage[LatencyTableConfig]):
    """Reports a `LatencyTable` of one network, timed in whole engines by turns in one run.

    Layers alone would be timed without the layout conversions, fusions and Q/DQ nodes between them. All groups of equal
    kind are cut at once, so a few engines tell of all groups.

    Cached, because a table that steers a cut must not change between two runs of it.
    """

    name = "latency-table"
    version = 3
    Config = LatencyTableConfig
    ports: ClassVar = {"model": port(BundleKind.TORCH), "latency_model": port(BundleKind.REPORT, optional=True)}
    produces = BundleKind.REPORT
    reads = frozenset({"target"})

    def requires(self, inputs: Inputs, ctx: Context) -> None:
        if not is_trainable(inputs.one("model").model):
            raise UserError(
                "This model has no widths to time: its program could not be rebuilt into layers.",
                hint="give a state dict with --arch, or prune with follow=macs",
            )
        target = ctx.resource("target", Target)
        if ctx.execution.board is None and not target.measured_here:
            raise DeviceUnavailable(
                f"A latency table is timed on the device, and this machine is not {target.name}.",
                hint="compress --device ssh://USER@BOARD times it there; follow=latency goes by a prediction",
            )

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        config, bundle, target = self.config, inputs.one("model"), ctx.resource("target", Target)
        model = self._model(inputs, target, ctx)
        device = device_for(target, ctx.execution.board, config.precision, config.runtime, self._manner(ctx))
        workshop = Workshop(
            module=module_from_bundle(bundle, ctx.blobs),
            bundle=bundle,
            precision=config.precision,
            scheme=target.scheme_for(device.runtime),
            opset=config.opset,
            blobs=FolderBlobs(ctx.scratch / "engines"),
            folder=ctx.scratch,
        )
        latency, groups = self._followed(workshop, model, ctx)
        kinds, left_out = self._kinds(latency, groups)
        cuts = _cuts(kinds)
        found, said = _timed(device, workshop, cuts, ctx)
        whole = found[WHOLE]
        if not isinstance(whole, LatencyReport):
            raise whole
        result = calibrated(latency, _series(whole), _by_kind(kinds, cuts, found))
        if not result.kinds:
            raise BuildFailed(f"No width of any group could be timed. {_failures(cuts, found)[0]}")
        table = LatencyTable(
            target=target.name,
            runtime=device.runtime,
            precision=config.precision,
            threads=config.threads,
            whole=_series(whole).time,
            kinds=result.kinds,
            left_out=tuple(group.name for kind in left_out for group in kind.groups),
            model=model,
            scales=dict(result.scales),
            otherwise=result.otherwise,
            fixed_ms=result.fixed_ms,
        )
        return StageResult(
            bundle=bundle_from_report(table, ctx),
            metrics=_metrics(table, found),
            decisions=(*_decisions(table), *_failures(cuts, found), *said),
        )

    def _manner(self, ctx: Context) -> Manner:
        config = self.config
        return Manner(
            threads=config.threads,
            duration_s=config.duration_s,
            interval=config.interval,
            seed=ctx.seed,
            reporter=ctx.reporter,
        )

    def _model(self, inputs: Inputs, target: Target, ctx: Context) -> LatencyModel:
        fitted = inputs.maybe("latency_model")
        if fitted is None:
            return latency_model_from_target(target)
        return report_from_bundle(fitted, LatencyModel, ctx, "latency_model")

    def _followed(
        self, workshop: Workshop, model: LatencyModel, ctx: Context
    ) -> tuple[WidthLatency, tuple[ChannelGroup, ...]]:
        """The network's groups, and its latency by the model alone."""
        module, shape = workshop.module, workshop.bundle.model.preprocessing.input_shape
        progress = ctx.reporter.progress
        groups = analyse(module, shape, on_progress=partial(progress, "proving channel groups")).groups
        latency = WidthLatency(
            module,
            shape,
            groups,
            lambda cost: model.op_ms(cost, self.config.precision),
            corrections=Corrections(fixed_ms=model.fixed_us / 1e3),
            on_progress=partial(progress, "pricing channel groups"),
        )
        return latency, groups

    def _kinds(
        self, latency: WidthLatency, groups: Sequence[ChannelGroup]
    ) -> tuple[tuple[Kind, ...], tuple[Kind, ...]]:
        """(kinds that are timed, kinds that are left out); one engine is that of the whole network."""
        config = self.config
        kinds = kinds_of(latency, groups, config.channel_multiple)
        if not kinds:
            raise BuildFailed(
                f"There is nothing to time: none of {len(groups)} groups of channels has a narrower width that is a "
                f"multiple of {config.channel_multiple}.",
                hint="set a smaller channel_multiple, or prune with follow=macs",
            )
        return within(kinds, widths=config.widths, engines=config.engines - 1)


def _cuts(kinds: Sequence[Kind]) -> tuple[_Cut, ...]:
    return tuple(
        _Cut(name=f"kind{number}-{kept}", kind=kind, kept=kept)
        for number, kind in enumerate(kinds)
        for kept in kind.kept
    )


def _timed(device: Device, workshop: Workshop, cuts: Sequence[_Cut], ctx: Context) -> tuple[Latencies, tuple[str, ...]]:
    """By engine; one that cannot be built is an error in its place, as one that cannot be timed is."""
    task, steps = "building engines to time", len(cuts) + 1
    ctx.reporter.progress(task, 0, steps)
    engines: dict[str, ModelBundle] = {WHOLE: workshop.engine()}
    failures: dict[str, EdgekdError] = {}
    for done, cut in enumerate(cuts, 1):
        ctx.reporter.progress(task, done, steps)
        try:
            engines[cut.name] = workshop.engine(cut.kind.groups, cut.kept)
        except EdgekdError as err:
            failures[cut.name] = err
    ctx.reporter.progress(task, steps, steps)
    found, said = device.time(engines, workshop.blobs)
    return {**failures, **found}, said


def _series(report: LatencyReport) -> Series:
    time = Timed(p50_ms=report.p50_ms, low_ms=report.median_low_ms, high_ms=report.median_high_ms)
    return Series(time, tuple(round_medians(report.rounds_ns)), report.turns)


def _by_kind(kinds: Sequence[Kind], cuts: Sequence[_Cut], found: Latencies) -> list[tuple[Kind, Mapping[int, Series]]]:
    """The times of each kind by units kept."""
    times: dict[int, dict[int, Series]] = {id(kind): {} for kind in kinds}
    for cut in cuts:
        latency = found[cut.name]
        if isinstance(latency, LatencyReport):
            times[id(cut.kind)][cut.kept] = _series(latency)
    return [(kind, times[id(kind)]) for kind in kinds]


def _failures(cuts: Sequence[_Cut], found: Latencies) -> list[str]:
    """A sentence on each width that has no time."""
    return [
        f"{cut.kind.words} at {cut.kept} units were not timed: {latency.message}"
        for cut in cuts
        if isinstance(latency := found[cut.name], EdgekdError)
    ]


def _decisions(table: LatencyTable) -> list[str]:
    count = sum(len(kind.widths) for kind in table.kinds)
    lines = [
        f"{count + 1} {table.precision.upper()} engines were timed by turns in {table.runtime} with "
        f"{counted(table.threads, 'thread')}: the whole network takes {ms(table.whole.p50_ms)}, and "
        f"{len(table.kinds)} kinds of channel groups were cut to several widths."
    ]
    lines += [_stairs_in_words(kind) for kind in table.kinds]
    if table.left_out:
        more = len(table.left_out) - _NAMED
        named = ", ".join(table.left_out[:_NAMED]) + (f" and {more} more" if more > 0 else "")
        lines.append(f"Not timed, so that their latency stays predicted: {named}.")
    return lines


def _stairs_in_words(kind: TimedKind) -> str:
    """What the widths of a kind cost as many units as, those alone that differ from the one above."""
    name = f"{kind.groups[0]} and {len(kind.groups) - 1} more like it" if len(kind.groups) > 1 else kind.groups[0]
    edges, before = [], float(kind.units)
    for width in kind.widths:
        if width.effective != before:
            edges.append(f"{width.kept} ({ms(width.time.p50_ms)})")
            before = width.effective
    if not edges:
        return f"{name}: no width under {kind.units} units is faster."
    return f"{name}: of {kind.units} units the edges are {', '.join(edges)}."


def _metrics(table: LatencyTable, found: Latencies) -> dict[str, JsonValue]:
    return {
        "engines": len(found),
        "failed": sum(isinstance(latency, EdgekdError) for latency in found.values()),
        "kinds": len(table.kinds),
        "whole_ms": table.whole.p50_ms,
    }
