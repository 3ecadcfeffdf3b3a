"""`edgekd evaluate`: the accuracy of finished bundles on data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from edgekd.cli.console import print_table, reporter_for
from edgekd.cli.options import SectionedCommand, names_for, own_code, section, shared, verbosity_of


@click.command(cls=SectionedCommand, short_help="Measure the accuracy of bundles on data.")
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="BUNDLE...")
@section(
    "Main",
    click.option("--data", required=True, help="Labelled image folder, .npz or calibration card."),
    click.option("--runtime", "runtimes", multiple=True, help="Where to run; default: the one it was chosen for."),
    click.option("--split", type=click.Choice(["select", "test", "both"]), default="test", show_default=True,
                 help="Part of the data: test is the one that no decision was taken on."),
    click.option("--seed", type=click.IntRange(0), help="Of the split of the data; default: the bundle's, or 0."),
    own_code,
)  # fmt: skip
@shared
def evaluate(**flags: Any) -> int:
    """Measure top-1 accuracy of one or more bundles with a 95 % interval.

    A bundle is the folder that `compress` or a verb wrote, an .edgekd file, or an .onnx file.
    """
    from edgekd.core.report import METRIC_NAMES, Evaluation, EvaluationReport
    from edgekd.export.archive import is_packed
    from edgekd.pipeline.single import data_for, workbench

    reporter = reporter_for(flags["output_format"], verbosity_of(flags["verbose"], flags["quiet"]))
    found: list[Evaluation] = []
    models = names_for(flags["models"])
    with workbench(models, flags["archs"]) as bench:
        data = {
            name: data_for(bundle, bench.origins[name], flags["data"], flags["seed"])
            for name, bundle in bench.bundles.items()
        }
        for decision in dict.fromkeys(text for dataset, _ in data.values() for text in dataset.decisions):
            reporter.message(f"• {decision}")
        for name, path in models:
            dataset, warning = data[name]
            if path.is_file() and not is_packed(path):
                assumed = bench.bundles[name].model.preprocessing
                warning = f"the file carries no preprocessing; assumed are mean {assumed.mean} and std {assumed.std}."
            if warning:
                reporter.message(f"{name}: {warning}", level="warning")
            splits = ["select", "test"] if flags["split"] == "both" else [flags["split"]]
            config: dict[str, Any] = {"candidate": name, "runtimes": list(flags["runtimes"]), "splits": splits}
            report, _ = bench.run(
                [name], "evaluate", config, "model", EvaluationReport, resources={"data": dataset}, reporter=reporter
            )
            found += report.evaluations
    if flags["output_format"] == "json":
        click.echo(json.dumps([evaluation.plain() for evaluation in found], indent=2))
        return 0
    rows = [
        [
            e.candidate,
            e.runtime,
            e.split,
            f"{100 * e.value:.2f} %",
            f"{100 * e.low:.2f} to {100 * e.high:.2f} %",
            str(e.n),
        ]
        for e in found
    ]
    columns = ["model", "runtime", "split", METRIC_NAMES[found[0].metric], "95 % interval", "images"]
    print_table("", columns, rows, numeric_from=3)
    return 0
