"""`edgekd history`: verdicts over time."""

from __future__ import annotations

import json
from pathlib import Path

import click

from edgekd.cli.options import SectionedCommand, section
from edgekd.core.text import significant


@click.command(cls=SectionedCommand, short_help="Show the verdicts over time, as a table or a plot.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@section(
    "Main",
    click.option("--subject", help="Only entries of this subject."),
    click.option("--last", type=click.IntRange(1), metavar="N", help="Only the last N entries."),
    click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
                 help="Draw them: .svg for a picture, .html for a page."),
    click.option("--format", "output_format", type=click.Choice(["text", "json"]), default="text", help="Of it."),
)  # fmt: skip
def history(file: Path, subject: str | None, last: int | None, plot: Path | None, output_format: str) -> int:
    """Show FILE, which `edgekd gate ... --history FILE` appends to, oldest first."""
    from edgekd.cli.console import print_table
    from edgekd.core.history import read_history
    from edgekd.report.history import write_history_plot

    entries = [entry for entry in read_history(file) if subject in (None, entry.subject)]
    entries = entries[-last:] if last else entries
    if plot is not None:
        write_history_plot(entries, plot)
        click.echo(f"wrote {plot}", err=True)
    if output_format == "json":
        click.echo(json.dumps([entry.plain() for entry in entries], indent=2))
        return 0
    rows = []
    for entry in entries:
        ratio = "" if entry.ratio is None else f"{100 * (entry.ratio - 1):+.1f} %"
        median = "" if entry.p50_ms is None else significant(entry.p50_ms)
        interval = ""
        if entry.low_ms is not None and entry.high_ms is not None:
            interval = f"{significant(entry.low_ms)} to {significant(entry.high_ms)}"
        name = f"{median} predicted" if median and entry.origin == "predicted" else median
        rows.append([entry.time, entry.label, entry.subject, entry.status, name, interval, ratio])
    columns = ["time", "label", "subject", "verdict", "p50 ms", "95 % interval", "vs baseline"]
    print_table("", columns, rows, numeric_from=4)
    return 0
