"""`edgekd label`: which images without labels are worth one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from edgekd.cli.compress import model_options, model_source_from_flags
from edgekd.cli.console import print_table, reporter_for
from edgekd.cli.options import SectionedCommand, section, shared, verbosity_of
from edgekd.cli.verb import existing
from edgekd.core.text import percent, significant

SHOWN = 12
"""Lines of the table on the console; the file holds all."""


@click.command(cls=SectionedCommand, short_help="Choose the images whose labels would teach most.")
@click.argument("model", metavar="MODEL")
@section(
    "Main",
    click.option("--data", required=True, help="What has labels: image folder, .npz or calibration card."),
    click.option("--unlabelled", required=True, help="What to choose from, in the same forms."),
    click.option("--count", type=click.IntRange(1), default=100, show_default=True, help="Images to label."),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the split of the data."),
    click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("to_label.csv"), show_default=True,
                 help="The list: image, class that the model sees, its confidence, distance."),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where MODEL runs."),
    click.option("--cpu-threads", type=click.IntRange(1), help="CPU threads; default: all cores."),
)  # fmt: skip
@model_options
@shared
def label(**flags: Any) -> int:
    """Choose from images without labels those that MODEL sees as farthest from everything that has one.

    Each image is chosen by its distance to all labelled and already chosen ones in the model's probabilities, so that
    few labels cover what the model distinguishes. Label them, train anew, and ask again.

    \b
    edgekd label model.pt --arch timm:resnet18 --data photos/ --unlabelled camera/ --count 200
    """
    from edgekd.cli.work import live
    from edgekd.core.stage import Execution
    from edgekd.core.store import LocalStore
    from edgekd.pipeline.labelling import LabelRequest, images_to_label, write_labels

    given = {
        "model": model_source_from_flags(flags).plain(),
        "data": existing(flags["data"]),
        "unlabelled": existing(flags["unlabelled"]),
        "count": flags["count"],
        "seed": flags["seed"],
    }
    request = LabelRequest.parse(given, "the flags")
    with live(reporter_for(flags["output_format"], verbosity_of(flags["verbose"], flags["quiet"]))) as reporter:
        execution = Execution(device=flags["device"], threads=flags["cpu_threads"])
        report = images_to_label(request, LocalStore(flags["store"]), reporter, execution)
        for note in report.notes:
            reporter.message(f"\N{BULLET} {note}")
    write_labels(report, flags["out"])
    if flags["output_format"] == "json":
        click.echo(json.dumps(report.plain(), indent=2))
        return 0
    rows = [[r.image, r.seen_as, percent(r.confidence), significant(r.distance)] for r in report.images[:SHOWN]]
    title = f"{len(report.images)} of {report.pool} images to label, most valuable first"
    print_table(title, ["image", "seen as", "confidence", "distance"], rows, numeric_from=2)
    click.echo(f"\nlist  {flags['out']}")
    return 0
