"""`edgekd gate`: the verdict of a finished run under its own limits, others, or a baseline. Runs nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from edgekd.cli.compress import budget_options
from edgekd.cli.options import SectionedCommand, section
from edgekd.cli.verdict import print_verdict
from edgekd.core.blobs import disk_errors
from edgekd.core.report import Budget
from edgekd.errors import GateFailed, Inconclusive, UserError
from edgekd.gate.artifacts import RunMetrics, baseline_of_run, judge_run, read_baseline, read_run

LIMITS = ("max_latency_ms", "max_drop", "max_size_mib")


@click.command(cls=SectionedCommand, short_help="Judge a finished run; the exit code is the verdict.")
@click.argument("out", type=click.Path(path_type=Path))
@budget_options
@section(
    "Baseline",
    click.option("--baseline", type=click.Path(path_type=Path), help="JSON of an accepted run: no regression from it."),
    click.option("--write-baseline", type=click.Path(path_type=Path), help="Write this run as a baseline."),
    click.option("--format", "output_format", type=click.Choice(["text", "json"]), default="text", help="Output."),
)
def gate(**flags: Any) -> int:
    """Judge the results in OUT (a folder of `compress` or `run`) against limits.

    Limits that are not given are those of the run. Exit codes: 0 PASS, 1 FAIL, 5 INCONCLUSIVE (too noisy, predicted, or
    another device than the baseline's).
    """
    run = read_run(flags["out"])
    budget = _budget(flags, run)
    baseline = read_baseline(flags["baseline"]) if flags["baseline"] else None
    verdict = judge_run(run, budget, baseline)
    if flags["write_baseline"]:
        path = flags["write_baseline"]
        text = json.dumps(baseline_of_run(run).plain(), indent=2, sort_keys=True) + "\n"
        with disk_errors(path):
            path.write_text(text, encoding="utf-8")
        click.echo(f"wrote the baseline {path}", err=True)
    if flags["output_format"] == "json":
        click.echo(json.dumps(verdict.plain(), indent=2))
        return _exit_code(verdict.status, budget, baseline is not None)
    print_verdict(verdict)
    return _exit_code(verdict.status, budget, baseline is not None)


def _budget(flags: dict[str, Any], run: RunMetrics) -> Budget:
    """The limits of the run, with those that were given in their place."""
    given = {name: flags[name] for name in LIMITS if flags[name] is not None}
    if flags["max_latency_ms"] is not None:
        given["percentile"] = int(flags["percentile"])
    elif flags["percentile"] != "50":
        raise UserError("--percentile needs a latency limit to apply to.", hint="add --max-latency-ms 5")
    if flags["max_drop"] is not None:
        given["drop_type"] = flags["drop_type"]
    elif flags["drop_type"] != "absolute":
        raise UserError("--drop-type needs a drop to apply to.", hint="add --max-drop 0.01")
    return Budget.parse(run.budget.plain() | given, "the budget flags")


def _exit_code(status: str, budget: Budget, against_baseline: bool) -> int:
    asked = against_baseline or any(getattr(budget, name) is not None for name in LIMITS)
    if status == "PASS" or not asked:
        return 0
    return GateFailed.exit_code if status == "FAIL" else Inconclusive.exit_code
