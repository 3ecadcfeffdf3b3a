"""`edgekd doctor`: what this machine can do, what is missing, and the command that installs it."""

from __future__ import annotations

import json

import click

from edgekd.cli.options import SectionedCommand


@click.command(cls=SectionedCommand, short_help="Say what this machine can do and what is missing.")
@click.option("--format", "output_format", type=click.Choice(["text", "json"]), default="text", help="Output.")
def doctor(output_format: str) -> int:
    """Show runtimes, devices, clocks and what is missing, with the command that installs it."""
    from edgekd.pipeline.health import examine

    findings = examine()
    if output_format == "json":
        click.echo(json.dumps([finding.plain() for finding in findings], indent=2))
        return 0
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        mark, colour = {"ok": ("✓", "green"), "missing": ("✗", "red"), "note": ("•", "cyan")}[finding.state]
        click.echo(f"{click.style(mark, fg=colour)} {finding.name:<{width}}  {finding.detail}")
        if finding.fix:
            click.echo(f"  {'':<{width}}  → {finding.fix}")
    return 0
