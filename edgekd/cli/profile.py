"""`edgekd profile`: latencies of finished bundles on this machine or on boards, measured against each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from edgekd.cli.console import print_table, reporter_for
from edgekd.cli.device import board_options, boards_wanted, profile_boards
from edgekd.cli.options import F, SectionedCommand, names_for, own_code, parse_counts, section, shared, verbosity_of
from edgekd.errors import BuildFailed, DeviceUnavailable, Inconclusive

SHOWN_LAYERS = 15


def measuring(*, warmup_s: float, duration_s: float) -> tuple[Callable[[F], F], ...]:
    """Flags of the verbs that measure."""
    return (
        click.option("--warmup", "warmup_s", type=float, default=warmup_s, show_default=True,
                     help="Seconds before measuring."),
        click.option("--duration", "duration_s", type=float, default=duration_s, show_default=True,
                     help="Seconds per engine, at most."),
        click.option("--precision", type=click.FloatRange(0, min_open=True), default=0.01, show_default=True,
                     help="Stop when 95 % intervals are narrower than this fraction."),
        click.option("--time-limit", "limit_s", type=click.FloatRange(1), default=120.0, show_default=True,
                     help="Seconds after which an engine that does not answer counts as hung."),
    )  # fmt: skip


@click.command(cls=SectionedCommand, short_help="Measure the latency of bundles, here or on boards.")
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="BUNDLE...")
@section(
    "Main",
    click.option("--target", default="host", show_default=True, help="Device: `host`, or `web` for browsers here."),
    click.option("--runtime", "runtimes", multiple=True,
                 help="Where to run; default: all of the target that are installed. A colon names a device: "
                      "onnxruntime:cuda, openvino:gpu."),
    click.option("--threads", default="1", show_default=True, metavar="LIST", help="CPU threads, 1 or 1,2."),
    *measuring(warmup_s=1.0, duration_s=5.0),
    click.option("--layers", is_flag=True, help="Show the times of layers, in float and in int8, and what fell back."),
    click.option("--offline", "offline_samples", type=click.IntRange(0), default=0, metavar="SAMPLES",
                 help="Also measure throughput with so many samples at once (MLPerf's Offline scenario)."),
    click.option("--offline-batch", type=click.IntRange(1), default=8, show_default=True,
                 help="Samples in a call of it."),
    own_code,
)  # fmt: skip
@board_options
@shared
def profile(**flags: Any) -> int:
    """Measure one or more bundles or .onnx files at batch 1, taking turns, with percentiles.

    p90 is the latency of MLPerf Inference's SingleStream scenario. Exit codes: 0 measured as precisely as asked, 5
    measured less precisely (inconclusive), 3 nothing could be measured, 4 no runtime opens the graph.
    """
    from edgekd.targets.load import HOST, load_target

    if boards_wanted(flags):
        if flags["target"] != HOST:
            raise click.UsageError("--target is for this machine; a board is measured in the runtimes it has.")
        return profile_boards(flags)
    from edgekd.core.report import ProfileReport
    from edgekd.pipeline.single import workbench

    reporter = reporter_for(flags["output_format"], verbosity_of(flags["verbose"], flags["quiet"]))
    same = ("warmup_s", "duration_s", "precision", "limit_s", "offline_samples", "offline_batch")
    config = {name: flags[name] for name in same} | {"layers": "all" if flags["layers"] else "summary"}
    config |= {"runtimes": list(flags["runtimes"]), "threads": list(parse_counts(flags["threads"], "--threads"))}
    with workbench(names_for(flags["models"]), flags["archs"]) as bench:
        report, node = bench.run(
            list(bench.bundles), "profile", config, "candidates", ProfileReport,
            resources={"target": load_target(flags["target"])}, reporter=reporter,
        )  # fmt: skip
    if flags["output_format"] == "json":
        click.echo(json.dumps(report.plain(), indent=2))
    else:
        for decision in node.decisions:
            reporter.message(f"• {decision}")
        print_report(report, flags["layers"])
    return exit_code_for(report.entries)


def exit_code_for(entries: Any) -> int:
    """0 when all that was measured is as precise as asked, 5 when the machine was too restless; without a latency, the
    code of what all failed of, or 3."""
    timed = [entry.latency for entry in entries if entry.latency]
    restless = any(entry.failure_code == Inconclusive.exit_code for entry in entries)
    if restless or any(latency.inconclusive for latency in timed):
        return Inconclusive.exit_code
    if timed:
        return 0
    codes = {entry.failure_code for entry in entries}
    return BuildFailed.exit_code if codes == {BuildFailed.exit_code} else DeviceUnavailable.exit_code


def print_report(report: Any, with_layers: bool) -> None:
    """Prints the table of a profile and what stands beside its numbers."""
    columns = ["model", "runtime", "threads", "p50 ms", "±", "p90", "p99", "per s", "N", "load ms", "peak MiB"]
    metered = any(entry.latency and entry.latency.energy for entry in report.entries)
    offline = any(entry.latency and _offline(entry.latency) for entry in report.entries)
    columns += ["mJ"] if metered else []
    columns += ["offline per s"] if offline else []
    rows = [_row(entry, metered, offline, len(columns)) for entry in report.entries]
    print_table(report.device, columns, rows, numeric_from=2)
    for entry in report.entries:
        if entry.failure:
            click.echo(f"{entry.candidate}@{entry.runtime}: {entry.failure}")
        elif entry.latency and entry.latency.inconclusive:
            click.echo(f"{entry.candidate}@{entry.runtime}: inconclusive. {entry.latency.inconclusive}")
        if entry.latency and (alone := entry.latency.compute_only):
            low, high = alone.median_low_ms, alone.median_high_ms
            text = f"compute only {alone.p50_ms:.3f} ms ({low:.3f} to {high:.3f}), p99 {alone.p99_ms:.3f}"
            click.echo(f"{entry.candidate}@{entry.runtime}: {text}; the table is with transfers")
    if with_layers:
        for entry in report.entries:
            _print_layers(entry)


def _row(entry: Any, metered: bool, offline: bool, width: int) -> list[str]:
    latency = entry.latency
    if entry.prediction is not None:
        predicted = f"~{entry.prediction.median_ms:.3f} predicted"
        return [entry.candidate, entry.runtime, str(entry.prediction.threads), predicted, "", "", "", "", ""]
    if latency is None:
        return [entry.candidate, entry.runtime, "", "failed", *([""] * (width - 4))]
    row = [entry.candidate, entry.runtime, str(latency.threads), f"{latency.p50_ms:.3f}"]
    row += [f"{latency.median_width / 2:.1%}", f"{latency.p90_ms:.3f}", f"{latency.p99_ms:.3f}"]
    row += [f"{latency.throughput_per_s:.0f}", str(latency.n), _shown(latency.load_ms), _shown(latency.memory_peak_mib)]
    row += [_shown(latency.energy and latency.energy.per_call_mj)] if metered else []
    return row + ([_shown(_offline(latency))] if offline else [])


def _offline(latency: Any) -> float | None:
    return latency.mlperf.offline_per_s if latency.mlperf else None


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _print_layers(entry: Any) -> None:
    title = f"\n{entry.candidate}@{entry.runtime}: "
    if entry.layers is None:
        if entry.latency is not None:
            click.echo(f"{title}the runtime does not tell the times of layers")
        return
    found = entry.layers
    shares = ", ".join(f"{share:.0%} {kind}" for kind, share in found.share_by_arithmetic.items())
    nodes = ", ".join(f"{count} on {provider}" for provider, count in found.nodes_by_provider.items())
    slowest = sorted(found.layers, key=lambda layer: -layer.median_ms)
    rows = [
        [layer.name, layer.op, layer.arithmetic, layer.kernel or layer.provider, f"{layer.median_ms:.3f}",
         f"{layer.median_ms / found.total_ms if found.total_ms else 0:.1%}"]
        for layer in slowest[:SHOWN_LAYERS]
    ]  # fmt: skip
    print_table(f"{title}{shares}; layers: {nodes} ({found.source}, which slows what it records)",
                ["layer", "operator", "computes in", "kernel", "median ms", "share"], rows, numeric_from=4)  # fmt: skip
    if len(slowest) > SHOWN_LAYERS:
        click.echo(f"... and {len(slowest) - SHOWN_LAYERS} faster ones; --format json has them all")
    for text in found.fell_back:
        click.echo(f"fell back: {text}")
