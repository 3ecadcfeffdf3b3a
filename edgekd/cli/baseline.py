"""`edgekd baseline`: the accepted result that a gate holds later ones to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgekd.cli.device import board_from_flags, one_board_options
from edgekd.cli.gate import is_run, parse_share
from edgekd.cli.options import SectionedCommand, section, verbosity_of
from edgekd.core.text import ms, percent, significant
from edgekd.errors import UserError


@click.group(short_help="Accept a result, so that later ones are held to it.")
def baseline() -> None:
    """The accepted result that `edgekd gate --baseline` holds later ones to: a small JSON file beside the code."""


@baseline.command(cls=SectionedCommand, short_help="Write the file, or leave it when only noise has changed.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("target", type=click.Path(path_type=Path))
@section(
    "Main",
    click.option("--reason", help="Why this result is accepted; kept in the file."),
    click.option("--max-regression", metavar="SHARE", help="Tolerance of the latency: 5% or 0.05."),
    click.option("--max-drop", type=click.FloatRange(0, 1), help="Tolerance of the accuracy: 0.01 is one point."),
    click.option("--dry-run", is_flag=True, help="Say what would change; write nothing."),
)
@section(
    "Measuring a bundle",
    click.option("--runtime", help="Where to run; default: the one the bundle was chosen for."),
    click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="CPU threads."),
    click.option("--time", "time_s", type=click.FloatRange(min=0.1), default=30.0, show_default=True,
                 metavar="SECONDS", help="Longest time of measuring; less when the median is known to 1 %."),
    click.option("--data", help="Labelled data, to note the accuracy."),
    click.option("--seed", type=click.IntRange(0), help="Of orders, and of the split of the data."),
    click.option("-v", "--verbose", is_flag=True, help="Say more; show the traceback of an error."),
    click.option("-q", "--quiet", is_flag=True, help="Only the result, warnings and errors."),
)  # fmt: skip
@one_board_options
def update(**flags: Any) -> int:
    """Accept TARGET (a finished run's folder, or a bundle that is measured now) as the baseline in FILE.

    A result that differs from the file's by noise alone leaves it as it is, so that re-runs make no diff. Otherwise the
    file's tolerances stay, and its numbers are replaced, rounded to their noise.
    """
    from edgekd.cli.console import reporter_for
    from edgekd.cli.work import live
    from edgekd.gate.artifacts import read_baseline
    from edgekd.pipeline.gating.accept import accepted_bundle, accepted_run, successor
    from edgekd.pipeline.gating.files import write_baseline
    from edgekd.pipeline.gating.request import GateRequest

    file, target, board = flags["file"], flags["target"], board_from_flags(flags)
    share = parse_share(flags["max_regression"], "--max-regression")
    tolerances = {"latency_tolerance": share, "accuracy_tolerance": flags["max_drop"]}
    given = {name: value for name, value in tolerances.items() if value is not None}
    old = read_baseline(file) if file.exists() else None
    if is_run(target):
        if board is not None:
            raise UserError(
                f"--device and --lab are for a bundle that is measured; {target} is a run with records of its own.",
                hint=f"give {target}/bundle",
            )
        new = accepted_run(target, file)
    else:
        request = GateRequest(
            target=target,
            runtime=flags["runtime"],
            threads=flags["threads"],
            time_limit_s=flags["time_s"],
            data=flags["data"],
            seed=flags["seed"],
            board=board,
        )
        with live(reporter_for("text", verbosity_of(flags["verbose"], flags["quiet"]))) as reporter:
            new = accepted_bundle(request, file, reporter)
    wanted = successor(old, new, given, flags["reason"])
    if wanted is None or old is None:
        click.echo(
            f"{_brief(new)}: {'first baseline' if old is None else f'as in {file} but for noise; left as it is'}"
        )
    else:
        click.echo(f"was {_brief(old)}\nnow {_brief(wanted)}")
    if wanted is not None and not flags["dry_run"]:
        write_baseline(wanted, file)
        click.echo(f"wrote {file}")
    return 0


def _brief(found: Any) -> str:
    interval = f"{significant(found.median_low_ms)} to {significant(found.median_high_ms)}"
    accuracy = "" if found.accuracy is None else f", {percent(found.accuracy)}"
    where = f"{found.runtime}, {found.threads} thread{'s' if found.threads > 1 else ''}"
    return f"{ms(found.p50_ms)} ({interval}), {significant(found.size_mib)} MiB{accuracy}; {where}"
