"""How `edgekd gate` answers: on the console, in files for CI, and by its exit code."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import click

from edgekd.cli.verdict import print_verdict
from edgekd.core.blobs import disk_errors
from edgekd.core.history import HistoryEntry, append_entry
from edgekd.core.report import Latency, LatencyReport
from edgekd.core.text import duration, ms, significant
from edgekd.errors import GateFailed, Inconclusive
from edgekd.gate.report import GateReport
from edgekd.report.ci import github_annotations, junit_from_verdict, markdown_from_verdict

FORMATS = ("text", "json", "junit", "markdown", "github")
SUMMARY_VARIABLE = "GITHUB_STEP_SUMMARY"
LABEL_VARIABLES = ("GITHUB_SHA", "CI_COMMIT_SHA", "GIT_COMMIT", "BUILD_SOURCEVERSION")
"""Where GitHub, GitLab, Jenkins and Azure keep the commit."""


def show(report: GateReport, output_format: str, *, warn: bool) -> None:
    """Prints the report in a format; `github` also adds the summary of the step where GitHub collects it."""
    if output_format == "json":
        click.echo(json.dumps(report.plain(), indent=2))
    elif output_format == "junit":
        click.echo(_junit(report, warn), nl=False)
    elif output_format == "markdown":
        click.echo(_markdown(report), nl=False)
    elif output_format == "github":
        for line in github_annotations(report, report.subject, notes=report.notes):
            click.echo(line)
        add_summary(report)
    if output_format in ("text", "github"):
        print_verdict(report)
        for note in report.notes:
            click.echo(f"  note: {note}")


def add_summary(report: GateReport) -> None:
    """Appends the markdown to the file that GitHub names for this step; does nothing elsewhere."""
    if os.environ.get(SUMMARY_VARIABLE):
        _append(Path(os.environ[SUMMARY_VARIABLE]), _markdown(report) + "\n")


def write_junit(report: GateReport, path: Path, *, warn: bool) -> None:
    """Writes the JUnit XML file.

    Raises:
        UserError: It cannot be written.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_junit(report, warn), encoding="utf-8")


def add_to_history(report: GateReport, path: Path, label: str | None) -> None:
    """Appends the verdict to a history.

    Args:
        label: What the code was; None takes the commit that the CI system names.

    Raises:
        UserError: It cannot be written.
    """
    latency, ratio = report.latency, report.ratio()
    low_ms, high_ms = (None, None) if latency is None else latency.median_interval
    limit = next((check.limit for check in report.checks if check.name == "latency"), None)
    named = next((os.environ[name] for name in LABEL_VARIABLES if os.environ.get(name)), "")
    entry = HistoryEntry(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        label=named[:12] if label is None else label,
        subject=report.subject,
        device=report.device,
        status=report.status,
        reason=report.reason,
        origin="measured" if latency is None else latency.origin,
        p50_ms=None if latency is None else latency.median_ms,
        low_ms=low_ms,
        high_ms=high_ms,
        limit_ms=limit,
        accuracy=None if report.accuracy is None else report.accuracy.value,
        ratio=None if ratio is None else ratio.value,
        ratio_low=None if ratio is None else ratio.low,
        ratio_high=None if ratio is None else ratio.high,
    )
    append_entry(path, entry)


def exit_code(status: str, *, asked: bool, warn: bool) -> int:
    """0 for PASS, 1 for FAIL, 5 for INCONCLUSIVE unless that only warns.

    Args:
        asked: Whether there was anything to keep; without a limit there is nothing to fail.
    """
    if status == "PASS" or not asked:
        return 0
    if status == "FAIL":
        return GateFailed.exit_code
    return 0 if warn else Inconclusive.exit_code


def _junit(report: GateReport, warn: bool) -> str:
    return junit_from_verdict(report, report.subject, seconds=report.seconds, warn=warn)


def _markdown(report: GateReport) -> str:
    facts = {"device": report.device}
    if report.latency is not None:
        facts["latency"] = _latency(report.latency)
    if report.seconds:
        facts["time"] = duration(report.seconds)
    return markdown_from_verdict(report, report.subject, facts=facts, notes=report.notes)


def _latency(latency: Latency) -> str:
    """What was measured, or what a model says in its place."""
    low, high = latency.median_interval
    interval = "" if low is None or high is None else f" ({significant(low)} to {significant(high)})"
    said = f"median {ms(latency.median_ms)}{interval}"
    if isinstance(latency, LatencyReport):
        said += f", p90 {ms(latency.p90_ms)}, p99 {ms(latency.p99_ms)}; measured"
    else:
        said += f"; predicted, not measured, by {latency.model}"
    return f"{said}, {latency.runtime}, {latency.precision}, {latency.threads} thread(s)"


def _append(path: Path, text: str) -> None:
    with disk_errors(path), path.open("a", encoding="utf-8") as stream:
        stream.write(text)
