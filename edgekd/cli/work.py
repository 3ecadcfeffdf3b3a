"""What `compress`, `run` and `demo` share: from parsed flags to a run, its table and its exit code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from edgekd.cli.console import ConsoleReporter, JsonReporter, print_table, reporter_for
from edgekd.cli.options import verbosity_of
from edgekd.cli.verdict import print_verdict
from edgekd.core.events import Reporter, SilentReporter
from edgekd.core.plan import Plan
from edgekd.core.stage import BoardAccess, Execution
from edgekd.errors import Inconclusive
from edgekd.pipeline.recipes import Recipe
from edgekd.pipeline.request import Options, Request


@dataclass(frozen=True, kw_only=True)
class Job:
    """The flags that say where and how to run, not what."""

    out: Path
    store: Path
    dry_run: bool = False
    rebuild: frozenset[str] = frozenset()
    device: str = "auto"
    cpu_threads: int | None = None
    workers: str = "auto"
    board: BoardAccess | None = None
    output_format: str = "text"
    verbosity: int = 0

    @classmethod
    def from_flags(cls, flags: dict[str, Any]) -> Job:
        """From click's parameters of a verb with the shared flags."""
        from edgekd.cli.device import train_and_board

        device, board = train_and_board(flags)
        return cls(
            out=flags["out"],
            store=flags["store"],
            dry_run=flags["dry_run"],
            rebuild=frozenset(flags["rebuild"]),
            device=device,
            board=board,
            cpu_threads=flags["cpu_threads"],
            workers=flags["workers"],
            output_format=flags["output_format"],
            verbosity=verbosity_of(flags["verbose"], flags["quiet"]),
        )


def start(
    job: Job, *, request: Request | None = None, options: Options | None = None, recipe: Recipe | None = None
) -> int:
    """Plans or runs, prints the result, and returns the exit code of the verdict."""
    with live(reporter_for(job.output_format, job.verbosity)) as reporter:
        return _start(job, leaders(reporter), request, options, recipe)


def leaders(reporter: Reporter) -> Reporter:
    """The reporter on the leading process; under `torchrun` the others work in silence."""
    from edgekd.pipeline.execute import rank

    return reporter if rank() == 0 else SilentReporter()


@contextmanager
def live(reporter: ConsoleReporter | JsonReporter) -> Iterator[Reporter]:
    """Keeps the bars of a console alive while work goes on; JSON lines need no such care."""
    if isinstance(reporter, JsonReporter):
        yield reporter
        return
    with reporter:
        yield reporter


def _start(
    job: Job, reporter: Reporter, request: Request | None, options: Options | None, recipe: Recipe | None
) -> int:
    from edgekd.pipeline.execute import Run, Workspace

    workspace = Workspace(
        out=job.out,
        store=job.store,
        reporter=reporter,
        execution=Execution(device=job.device, threads=job.cpu_threads, workers=job.workers, board=job.board),
        rebuild=job.rebuild,
    )
    run = Run(workspace, request=request, options=options, recipe=recipe)
    if job.dry_run:
        return _print_plan(job, run)
    for sentence in run.recipe.decisions:
        reporter.message(f"• {sentence}")
    outcome = run.execute()
    return 0 if outcome is None else _print_outcome(job, outcome)


def _print_plan(job: Job, run: Any) -> int:
    plan = run.plan()
    path = run.write_planned()
    if job.output_format == "json":
        click.echo(json.dumps({**plan.plain(), "resolved": str(path)}, indent=1))
        return 0
    for sentence in run.recipe.decisions:
        click.echo(f"• {sentence}")
    print_plan(plan, "text")
    click.echo(f"\nNothing was run. The resolved recipe: {path}  (edgekd run {path})")
    return 0


def print_plan(plan: Plan, output_format: str) -> int:
    """Prints what would run and why; returns 0."""
    if output_format == "json":
        click.echo(json.dumps(plan.plain(), indent=1))
        return 0
    rows = [[decision.node, decision.stage, decision.sentence] for decision in plan.decisions]
    print_table("", ["node", "stage", "what happens and why"], rows, numeric_from=3)
    return 0


def _print_outcome(job: Job, outcome: Any) -> int:
    delivery, verdict = outcome.delivery, outcome.verdict
    if job.output_format == "json":
        click.echo((job.out / "metrics.json").read_text())
    else:
        if job.verbosity >= 0:
            click.echo()
            print_table(*delivery.table)
        click.echo(f"\nchosen   {delivery.chosen_text}")
        click.echo(f"bundle   {delivery.bundle}")
        click.echo(f"report   {delivery.report}")
        print_verdict(verdict)
        if delivery.exit_code == Inconclusive.exit_code and job.verbosity >= 0:
            click.echo("".join(f"next     {step}\n" for step in delivery.next_steps[:1]), nl=False)
    return int(delivery.exit_code)
