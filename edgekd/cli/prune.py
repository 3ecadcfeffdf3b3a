"""`edgekd prune`: cut whole channels out of one network."""

from __future__ import annotations

from typing import Any

import click

from edgekd.cli.compress import model_options
from edgekd.cli.options import SectionedCommand, section, shared
from edgekd.cli.verb import carry_out, fields, places, request_from

FIELDS = ("macs_keep", "budget_ms", "importance", "follow")
"""Flags that are fields of the stage's config."""


@click.command(cls=SectionedCommand, short_help="Cut channels out of a network.")
@click.argument("model", metavar="MODEL")
@fields
@section(
    "Main",
    click.option("--keep", "macs_keep", type=float, default=0.5, show_default=True,
                 help="Largest share of the multiply-accumulates that remains."),
    click.option("--max-latency-ms", "budget_ms", type=float,
                 help="Cut on until the latency predicted for --target keeps this."),
    click.option("--target", help="Device: sets the multiple that channels end at, and predicts its latency."),
    click.option("--importance", help="How channels are ranked: l2 (default), l1, bn, lamp, flap, taylor, fisher, kd."),
    click.option("--follow", type=click.Choice(["macs", "latency", "measured"]),
                 help="Cut evenly by MACs, or where the latency of --target falls most for what is lost: as predicted, "
                 "or by engines at several widths that are timed first, where this machine is the target."),
    click.option("--data", help="Images, for rankings that look at some: flap, taylor, fisher, kd."),
    *places("pruned"),
)  # fmt: skip
@model_options
@shared
def prune(**flags: Any) -> int:
    """Cut the least important channels of MODEL, with all that hangs on them, and write the rest as a package.

    MODEL is a model file with --arch, or a package of another verb. The package rebuilds without a pickle. What was cut
    loses accuracy: `edgekd distill` lets it recover. KEY=VALUE reaches any field of the stage: scope=global.

    \b
    edgekd prune model.pt --arch timm:resnet18 --target jetson --keep 0.6
    """
    given = {name: flags[name] for name in FIELDS if flags[name] is not None}
    for flag, name in (("--max-latency-ms", "budget_ms"), (f"--follow {flags['follow']}", "follow")):
        if flags[name] not in (None, "macs") and flags["target"] is None:
            raise click.UsageError(f"{flag} goes by the latency of a device: give --target.")
    return carry_out(request_from("prune", flags, config=given), flags)
