"""`edgekd profile`: latencies of finished bundles on this machine, measured against each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from edgekd.cli.console import print_table, reporter_for
from edgekd.cli.options import SectionedCommand, names_for, parse_counts, section, shared, verbosity_of


@click.command(cls=SectionedCommand, short_help="Measure the latency of bundles on this machine.")
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="BUNDLE...")
@section(
    "Main",
    click.option("--runtime", "runtimes", multiple=True, help="Where to run; default: all installed."),
    click.option("--threads", default="1", show_default=True, metavar="LIST", help="CPU threads, 1 or 1,2."),
    click.option("--warmup", "warmup_s", type=float, default=1.0, show_default=True, help="Seconds before measuring."),
    click.option("--duration", "duration_s", type=float, default=5.0, show_default=True, help="Seconds per engine."),
)
@shared
def profile(**flags: Any) -> int:
    """Measure one or more bundles or .onnx files at batch 1, taking turns, with percentiles."""
    from edgekd.core.report import ProfileReport
    from edgekd.pipeline.single import workbench
    from edgekd.targets.load import load_target

    reporter = reporter_for(flags["output_format"], verbosity_of(flags["verbose"], flags["quiet"]))
    config = {
        "runtimes": list(flags["runtimes"]),
        "threads": list(parse_counts(flags["threads"], "--threads")),
        "warmup_s": flags["warmup_s"],
        "duration_s": flags["duration_s"],
    }
    with workbench(names_for(flags["models"])) as bench:
        report, node = bench.run(
            list(bench.bundles), "profile", config, "candidates", ProfileReport,
            resources={"target": load_target("host")}, reporter=reporter,
        )  # fmt: skip
    if flags["output_format"] == "json":
        click.echo(json.dumps(report.plain(), indent=2))
        return 0
    for decision in node.decisions:
        reporter.message(f"• {decision}")
    rows = [_row(entry) for entry in report.entries]
    columns = ["model", "runtime", "threads", "p50 ms", "p90", "p95", "p99", "per s", "N"]
    print_table(report.device, columns, rows, numeric_from=2)
    failures = [entry for entry in report.entries if entry.failure]
    for entry in failures:
        click.echo(f"{entry.candidate}@{entry.runtime}: {entry.failure}")
    return 0 if len(failures) < len(report.entries) else 3


def _row(entry: Any) -> list[str]:
    latency = entry.latency
    if entry.prediction is not None:
        predicted = f"~{entry.prediction.median_ms:.3f} predicted"
        return [entry.candidate, entry.runtime, str(entry.prediction.threads), predicted, "", "", "", "", ""]
    if latency is None:
        return [entry.candidate, entry.runtime, "", "failed", "", "", "", "", ""]
    values = [latency.p50_ms, latency.p90_ms, latency.p95_ms, latency.p99_ms]
    shown = [f"{value:.3f}" for value in values]
    return [
        entry.candidate, entry.runtime, str(latency.threads), *shown, f"{latency.throughput_per_s:.0f}", str(latency.n)
    ]  # fmt: skip
