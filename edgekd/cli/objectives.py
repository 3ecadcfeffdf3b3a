"""`edgekd objectives`: what a student can be distilled with."""

from __future__ import annotations

import json

import click

from edgekd.cli.console import print_table
from edgekd.cli.options import SectionedCommand


@click.command(cls=SectionedCommand, short_help="List the distillation objectives.")
@click.option("--format", "output_format", type=click.Choice(["text", "json"]), default="text", help="Output.")
def objectives(output_format: str) -> int:
    """List the distillation objectives: formula, source, and what each asks of labels and teacher."""
    from edgekd.train.objective import OBJECTIVES, TAPPED, label_free_objectives

    found = {name: OBJECTIVES.get(name) for name in OBJECTIVES}
    label_free = label_free_objectives()
    if output_format == "json":
        listed = [
            {"name": name, "formula": o.formula, "source": o.source, "needs": sorted(o.needs),
             "needs_of_teacher": sorted(o.needs_of_teacher), "teacher": o.needs_teacher,
             "trains_teacher": o.trains_teacher, "labels": name not in label_free}
            for name, o in found.items()
        ]  # fmt: skip
        click.echo(json.dumps(listed, indent=2))
        return 0
    rows = [
        [name, "no" if name in label_free else "yes",
         "trained along" if o.trains_teacher else _asked(o.needs_of_teacher & TAPPED, o.needs_teacher), o.formula,
         o.source]
        for name, o in found.items()
    ]  # fmt: skip
    print_table("", ["objective", "labels", "teacher", "formula", "source"], rows, numeric_from=5)
    return 0


def _asked(inside: frozenset[str], needs_teacher: bool) -> str:
    """What a teacher must give: nothing, its logits, or what it computes inside."""
    if not needs_teacher:
        return "none"
    return "inside" if inside else "logits"
