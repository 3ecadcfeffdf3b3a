"""`edgekd benchmark`: one model in every runtime, precision and thread count, in one table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from edgekd.cli.compress import model_options, model_source_from_flags
from edgekd.cli.console import print_table, reporter_for
from edgekd.cli.options import SectionedCommand, parse_counts, parse_names, section, shared, verbosity_of
from edgekd.cli.verb import existing, places

TOLD = ("slower than FP32", "worse than FP32", "wrong", "failed", "not installed", "not supported")
"""Outcomes whose reasons are printed below the table; the page and the JSON have those of all rows."""


@click.command(cls=SectionedCommand, short_help="Compare runtimes and precisions of one model in one table.")
@click.argument("model", metavar="MODEL")
@section(
    "Main",
    click.option("--target", default="host", show_default=True, help="Device: this machine by a name or a card."),
    click.option("--data", help="Images that calibrate INT8 and judge answers, labelled or not; or `synthetic`."),
    click.option("--precision", "precisions", metavar="LIST", default="fp32,fp16,int8", show_default=True,
                 help="Of fp32, fp16, int8: which to build."),
    click.option("--runtimes", metavar="LIST", help="Where to run; default: every runtime that edgekd knows."),
    click.option("--threads", default="1", show_default=True, metavar="LIST",
                 help="CPU threads, 1 or 1,2; the choice is made at the first."),
    click.option("--max-drop", type=click.FloatRange(0, 1), default=0.01, show_default=True,
                 help="Accuracy (or agreement) that an engine may lose and still be chosen: 0.01 is one point."),
    *places("benchmark"),
)  # fmt: skip
@section(
    "Measuring",
    click.option("--images", type=click.IntRange(1), default=1000, show_default=True,
                 help="Held-out images that every engine answers, at most; of noise, 64."),
    click.option("--calib-samples", type=click.IntRange(1), help="Calibration images; default: 300."),
    click.option("--calib-method", type=click.Choice(["auto", "minmax", "percentile", "entropy", "mse"]),
                 default="auto", show_default=True, help="How activation ranges are found."),
    click.option("--warmup", "warmup_s", type=float, default=0.5, show_default=True, help="Seconds before measuring."),
    click.option("--duration", "duration_s", type=float, default=3.0, show_default=True,
                 help="Seconds per engine, at most."),
    click.option("--interval", type=click.FloatRange(0, min_open=True), default=0.01, show_default=True,
                 help="Stop when 95 % intervals of medians are narrower than this fraction."),
    click.option("--time-limit", "limit_s", type=click.FloatRange(1), default=120.0, show_default=True,
                 help="Seconds after which an engine that does not answer counts as hung."),
)  # fmt: skip
@model_options
@shared
def benchmark(**flags: Any) -> int:
    """Build the FP32, FP16 and INT8 twins of MODEL, run them in every runtime, and say what to deploy and why.

    MODEL is a model file with --arch, a package, or an .onnx file of any vision task. Engines take turns in processes
    of their own; each also answers the same images, so that a fast engine that is wrong is called wrong. A runtime that
    fails or is not installed is a row with the reason. OUT gets report.html and benchmark.json. Exit codes: 0 measured
    as precisely as asked, 5 less precisely, 1 no engine is right, 3 nothing could be measured.

    \b
    edgekd benchmark model.onnx --data photos/ --threads 1,2
    """
    from edgekd.cli.work import live, print_plan
    from edgekd.pipeline.benchmark.files import exit_code_of, slim
    from edgekd.pipeline.benchmark.request import PRECISIONS, BenchmarkRequest
    from edgekd.pipeline.benchmark.run import BenchmarkRun
    from edgekd.pipeline.execute import Workspace

    same = (
        "target",
        "max_drop",
        "images",
        "calib_samples",
        "calib_method",
        "warmup_s",
        "duration_s",
        "limit_s",
        "seed",
    )
    request = BenchmarkRequest.parse(
        {
            **{name: flags[name] for name in same},
            "model": model_source_from_flags(flags).plain(),
            "data": existing(flags["data"]),
            "precisions": parse_names(flags["precisions"], "--precision", PRECISIONS),
            "runtimes": tuple(name.strip() for name in (flags["runtimes"] or "").split(",") if name.strip()),
            "threads": parse_counts(flags["threads"], "--threads"),
            "precision": flags["interval"],
        },
        "the flags",
    )
    with live(reporter_for(flags["output_format"], verbosity_of(flags["verbose"], flags["quiet"]))) as reporter:
        workspace = Workspace(
            out=flags["out"], store=flags["store"], reporter=reporter, rebuild=frozenset(flags["rebuild"])
        )
        run = BenchmarkRun(workspace, request)
        if flags["dry_run"]:
            return print_plan(run.plan(), flags["output_format"])
        outcome = run.execute()
    if flags["output_format"] == "json":
        click.echo(json.dumps(slim(outcome.report).plain(), indent=1))
    else:
        _print(outcome.report, outcome.file, outcome.page)
    return exit_code_of(outcome.report)


def _print(report: Any, file: Path, page: Path) -> None:
    from edgekd.report.benchmark import ROUGHLY

    _print_rows(report)
    if any(row.inconclusive for row in report.rows):
        click.echo(
            f"{ROUGHLY} known less precisely than asked: measure on a quieter machine, or for longer with --duration"
        )
    click.echo(f"compared on {report.data}")
    for row in report.rows:
        said = ". ".join(text for text in (row.reason, row.why) if text)
        if said and (row.status in TOLD or (row.why and (row.against_fp32 or 0) >= 1)):
            place = f"{row.engine}@{row.runtime}" if row.engine else row.runtime
            threads = f", {_threads(row.threads)}" if row.threads and len(report.threads) > 1 else ""
            click.echo(f"• {place}{threads}: {row.status}: {said}")
    if report.choice is None:
        click.echo(f"\nnothing would be deployed: {report.no_choice}")
    else:
        click.echo(f"\nchosen   {report.choice.candidate} in {report.choice.runtime}: {report.choice.reason}")
    click.echo(f"report   {page}\nnumbers  {file}")


def _print_rows(report: Any) -> None:
    """The table. A single thread count stands in its title: the table has to fit into 100 columns."""
    from edgekd.report.benchmark import row_text, value_name
    from edgekd.report.signs import TIMES

    title, middle = report.device, ["threads"]
    if len(report.threads) == 1:
        title, middle = f"{title}; {_threads(report.threads[0])}", []
    value = value_name(report, brief=True)
    columns = ["engine", "runtime", *middle, "MiB", value, "p50 ms", "p99", f"{TIMES}FP32", "peak MiB", "status"]
    rows = [
        [t.engine, t.runtime, *([t.threads] if middle else []), t.size, t.value, t.p50, t.p99, t.factor, t.memory,
         t.status]
        for t in map(row_text, report.rows)
    ]  # fmt: skip
    print_table(title, columns, rows, numeric_from=2)


def _threads(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}"
