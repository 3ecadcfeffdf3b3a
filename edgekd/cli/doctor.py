"""`edgekd doctor`: what this machine can do, what is missing, and the command that installs it."""

from __future__ import annotations

import json

import click

from edgekd.cli.options import SectionedCommand


@click.command(cls=SectionedCommand, short_help="Say what this machine can do and what is missing.")
@click.option("--format", "output_format", type=click.Choice(["text", "json"]), default="text", help="Output.")
@click.option("--install", metavar="NAME", help="Install a part that pip cannot add here; the list names them.")
def doctor(output_format: str, install: str | None) -> int:
    """Show runtimes, devices, clocks and what is missing, with the command that installs it."""
    if install is not None:
        return _install(install, output_format)
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


def _install(name: str, output_format: str) -> int:
    """Runs the commands of an addon, each shown before it runs."""
    from edgekd.runtimes.addons import addon, install

    part, told = addon(name), output_format == "text"
    if told:
        click.echo(f"{part.what}; about {part.size}, in {part.folder}")
    folder = install(part, on_command=lambda command: click.echo(f"$ {command}") if told else None)
    if told:
        click.echo(f"{part.name} is installed.")
    else:
        click.echo(json.dumps({"installed": part.name, "folder": str(folder)}))
    return 0
