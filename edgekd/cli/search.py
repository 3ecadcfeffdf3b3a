"""`edgekd search`: the students that fit a budget, which one to take, and why; nothing is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekd.cli.compress import model_options, options_from_flags, request_from_flags
from edgekd.cli.console import print_table, reporter_for
from edgekd.cli.options import SectionedCommand, section, shared, verbosity_of, workers_option
from edgekd.cli.search_list import print_listing
from edgekd.core.stage import Execution
from edgekd.core.text import significant
from edgekd.errors import GateFailed

if TYPE_CHECKING:
    from edgekd.pipeline.search_run import SearchOutcome
    from edgekd.search.report import Candidate, SearchReport

MOST_ROWS = 15
"""Of the table; search.json holds everything."""
_LEFT_TO_COMPRESS: dict[str, Any] = {
    "percentile": "50", "max_drop": None, "drop_type": "absolute", "max_size_mib": None,
    "students": "search", "weight_bits": None,
}  # fmt: skip
"""Flags of `compress` that a search has no use for."""


@click.command(cls=SectionedCommand, short_help="Find students within a latency budget; train nothing.")
@click.argument("model", metavar="[MODEL.PT]", required=False)
@section(
    "Main",
    click.option("--target", help="Device: a name from `edgekd targets`, or a card (YAML)."),
    click.option("--data", help="Image folder, .npz or calibration card. Without: students are scored on noise."),
    click.option("--max-latency-ms", type=float, help="Limit of the predicted latency at batch 1."),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="The only source of randomness."),
    click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("search"), show_default=True,
                 help="Folder of results."),
    click.option("--list", "listing", is_flag=True, help="List spaces, searchers, rankings and proxies, and stop."),
)  # fmt: skip
@section(
    "Search",
    click.option("--space", help="Search space; default: residual up to 64 px, inverted above."),
    click.option("--searcher", help="How to go through the space; default: exhaustive where few fit, else evolution."),
    click.option("--proxy", help="How students are ranked: a ranking, a proxy, or proxies joined by +."),
    click.option("--evaluations", type=click.IntRange(1), help="Students to score; default: 200."),
    click.option("--picks", type=click.IntRange(1, 8), help="Students to put forward; default: 1."),
    click.option("--precision", "precisions", metavar="LIST", help="Of fp32, fp16, int8: what will be deployed."),
    click.option("--threads", metavar="LIST", help="CPU threads of the device that latency is predicted for."),
    workers_option,
    click.option("--dry-run", is_flag=True, help="Print what would run and why, and stop."),
    click.option("--rebuild", multiple=True, metavar="NODE", help="Run this node again; `all`: every one. Repeat."),
)
@model_options
@shared
def search(**flags: Any) -> int:
    """Find small networks that suit MODEL.PT as students and are predicted to keep a latency budget.

    Students are ranked without training. Results: OUT/search.json (the front of score, latency and size, and all that
    was scored), a recipe for each pick, and OUT/compress.yaml, which `edgekd run` takes to train and deploy the picks.
    The exit code is 1 when no student keeps the budget.

    \b
    edgekd search model.pt --arch timm:resnet18 --target jetson --data photos/ --max-latency-ms 5
    """
    if flags["listing"]:
        return print_listing(flags["output_format"])
    for name, given in (("argument 'MODEL.PT'", flags["model"]), ("option '--target'", flags["target"])):
        if given is None:
            raise click.UsageError(f"Missing {name}.")
    from edgekd.cli.work import live, print_plan
    from edgekd.pipeline.execute import Workspace
    from edgekd.pipeline.search_run import SearchRun

    flags |= _LEFT_TO_COMPRESS
    request, options = request_from_flags(flags), options_from_flags(flags)
    with live(reporter_for(flags["output_format"], verbosity_of(flags["verbose"], flags["quiet"]))) as reporter:
        workspace = Workspace(
            out=flags["out"],
            store=flags["store"],
            reporter=reporter,
            execution=Execution(workers=flags["workers"]),
            rebuild=frozenset(flags["rebuild"]),
        )
        run = SearchRun(workspace, request=request, options=options)
        if flags["dry_run"]:
            return print_plan(run.plan(), flags["output_format"])
        outcome = run.execute()
    if flags["output_format"] == "json":
        click.echo(json.dumps(outcome.report.plain(), indent=1))
    else:
        _print_outcome(outcome, flags["out"])
    return 0 if outcome.report.within_limit else GateFailed.exit_code


def _print_outcome(outcome: SearchOutcome, out: Path) -> None:
    for sentence in outcome.decisions:
        click.echo(f"• {sentence}")
    click.echo()
    report, picks = outcome.report, outcome.picks
    shown = _shown(report, len(picks))
    ranks = {pick.arch: str(rank + 1) for rank, pick in enumerate(picks)}
    rows = [[f"→ {ranks[c.arch]}" if c.arch in ranks else "", *_row(c)] for c in shown]
    title = "Picks, and students that none beats in score, latency and size alike"
    print_table(title, ["pick", "student", "params M", "MACs M", "predicted ms", "score"], rows, numeric_from=2)
    left = len({c.arch for c in (*report.front, *picks)}) - len(shown)
    if left:
        click.echo(f"{left} more are in {out / 'search.json'}.")
    for rank, pick in enumerate(picks):
        click.echo(f"\npick {rank + 1}   {pick.text}\nwhy      {pick.reason}")
    click.echo(f"\nfiles    {', '.join(str(path) for path in outcome.files)}")
    for what, command in outcome.next_steps:
        click.echo(f"{what}:\n  {command}")


def _shown(report: SearchReport, picks: int) -> list[Candidate]:
    """The picks and as much of the front as a table holds, evenly spread over it; cheapest first."""
    picked = list(report.picks[:picks])
    rest = [candidate for candidate in report.front if candidate.arch not in {pick.arch for pick in picked}]
    room = max(MOST_ROWS - len(picked), 0)
    if len(rest) > room:
        rest = [rest[round(place * (len(rest) - 1) / max(room - 1, 1))] for place in range(room)]
    return sorted([*picked, *rest], key=lambda candidate: (candidate.cost, -candidate.score))


def _row(candidate: Candidate) -> list[str]:
    latency = "" if candidate.predicted_ms is None else significant(candidate.predicted_ms)
    spread = "" if candidate.spread == 0 else f" ± {significant(candidate.spread, 2)}"
    return [
        candidate.text,
        significant(candidate.params_m),
        significant(candidate.macs_m),
        latency,
        f"{significant(candidate.score)}{spread}",
    ]
