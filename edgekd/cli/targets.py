"""`edgekd targets`: the devices, in a table or one in full."""

from __future__ import annotations

import json

import click

from edgekd.cli.console import print_table
from edgekd.cli.options import SectionedCommand
from edgekd.targets.load import HOST, known_targets, load_target
from edgekd.targets.schema import Target


@click.command(cls=SectionedCommand, short_help="List the devices, or explain one.")
@click.argument("name", required=False)
@click.option("--format", "output_format", type=click.Choice(["text", "json"]), default="text", help="Output.")
def targets(name: str | None, output_format: str) -> int:
    """List the devices that have cards; with NAME (or a card's path) explain one, with the source of each number."""
    found = known_targets() if name is None else (load_target(name),)
    if output_format == "json":
        click.echo(json.dumps([target.plain() for target in found], indent=2))
    elif name is None:
        _print_list(found)
    else:
        _print_card(found[0])
    return 0


def _print_list(found: tuple[Target, ...]) -> None:
    # Only a processor can be the host; the boards among them come before their families.
    host = load_target(HOST).name if any(t.measured_here and t.kind == "cpu" for t in found) else None
    rows = [
        [
            target.name + (" (this machine)" if target.measured_here else ""),
            ", ".join([HOST, *target.aliases] if target.name == host else target.aliases),
            ", ".join(support.runtime for support in target.runtimes),
            ", ".join(target.precisions),
            target.description,
        ]
        for target in found
    ]
    print_table("", ["target", "also", "runtimes", "precisions", "device"], rows, numeric_from=5)
    click.echo(
        "\nedgekd targets NAME explains one. Latency is measured where the target is this machine, else predicted."
    )


def _print_card(target: Target) -> None:
    click.secho(target.name, bold=True)
    click.echo(target.description)
    where = "measured here" if target.measured_here else "predicted: this machine is not the device"
    click.echo(f"\nlatency           {where}")
    click.echo(f"memory            {target.memory_mib:,} MiB")
    click.echo(f"channels          kept at multiples of {target.channel_multiple}")
    click.echo(f"threads           {', '.join(map(str, target.threads))}")
    if target.features:
        click.echo(f"instructions      {', '.join(target.features)}")
    for support in target.runtimes:
        scheme = f", INT8 as {support.scheme}" if support.scheme else ""
        click.echo(f"{support.runtime:<17} {support.versions}  {', '.join(support.precisions)}{scheme}")
        if support.notes:
            click.echo(f"{'':<17} {support.notes}")
    for precision, rate in target.peak.gmacs_per_s.items():
        click.echo(f"peak {precision:<12} {rate:,.0f} GMAC/s")
    click.echo(f"bandwidth         {target.peak.bandwidth_gb_s:,.1f} GB/s")
    if target.peak.relative_error is not None:
        click.echo(f"prediction error  {target.peak.relative_error:.0%} (median, against published latencies)")
    click.echo("\nsources")
    for source in (*target.sources, *target.peak.sources):
        click.echo(f"  - {source}")
    if target.notes:
        click.echo(f"\n{target.notes}")
