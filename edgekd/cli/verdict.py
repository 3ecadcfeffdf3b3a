"""A verdict on the console, the same for every verb that gives one."""

from __future__ import annotations

import click

from edgekd.core.report import Status, Verdict

COLOURS: dict[Status, str] = {"PASS": "green", "FAIL": "red", "INCONCLUSIVE": "yellow"}


def print_verdict(verdict: Verdict) -> None:
    """The status and its sentence; then one line per check."""
    click.echo("verdict  " + click.style(verdict.status, fg=COLOURS[verdict.status], bold=True), nl=False)
    click.echo(f"  {verdict.reason}")
    for check in verdict.checks:
        click.echo(f"  {click.style(check.status, fg=COLOURS[check.status]):<12} {check.name}: {check.reason}")
