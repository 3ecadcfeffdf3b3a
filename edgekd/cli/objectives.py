"""`edgekd objectives`: what a student can be distilled with."""

from __future__ import annotations

import json

import click

from edgekd.cli.console import print_table
from edgekd.cli.options import SectionedCommand


@click.command(cls=SectionedCommand, short_help="List the distillation objectives.")
@click.option("--format", "output_format", type=click.Choice(["text", "json"]), default="text", help="Output.")
def objectives(output_format: str) -> int:
    """List the distillation objectives: formula, source, and whether they need labels and a teacher."""
    from edgekd.train.objective import OBJECTIVES, label_free_objectives

    found = {name: OBJECTIVES.get(name) for name in OBJECTIVES}
    label_free = label_free_objectives()
    if output_format == "json":
        listed = [
            {"name": name, "formula": o.formula, "source": o.source, "needs": sorted(o.needs),
             "labels": name not in label_free, "teacher": o.needs_teacher}
            for name, o in found.items()
        ]  # fmt: skip
        click.echo(json.dumps(listed, indent=2))
        return 0
    rows = [
        [name, "no" if name in label_free else "yes", "yes" if o.needs_teacher else "no", o.formula, o.source]
        for name, o in found.items()
    ]
    print_table("", ["objective", "labels", "teacher", "formula", "source"], rows, numeric_from=5)
    return 0
