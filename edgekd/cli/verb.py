"""What `distill`, `prune`, `quantize` and `export` share: flags, and from a request to the printed result."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgekd.cli.compress import model_source_from_flags
from edgekd.cli.console import print_table, reporter_for
from edgekd.cli.options import parse_assignments, verbosity_of
from edgekd.core.stage import Execution
from edgekd.core.text import significant
from edgekd.errors import GateFailed
from edgekd.pipeline.request import absolute

if TYPE_CHECKING:
    from edgekd.pipeline.verb_run import VerbOutcome
    from edgekd.pipeline.verbs import VerbRequest

F = TypeVar("F", bound=Callable[..., Any])
MOST_SHOWN = 4
"""Entries of a metric that a cell of the table holds."""

fields = click.argument("fields", nargs=-1, metavar="[KEY=VALUE]...")
"""Any field of the stage's config."""


def places(default_out: str) -> tuple[Callable[[F], F], ...]:
    """`--seed`, `-o`, `--dry-run` and `--rebuild`."""
    return (
        click.option("--seed", type=click.IntRange(0), default=0, show_default=True,
                     help="The only source of randomness."),
        click.option("-o", "--out", type=click.Path(path_type=Path), default=Path(default_out), show_default=True,
                     help="The package: a folder that the other verbs take as a model."),
        click.option("--dry-run", is_flag=True, help="Print what would run and why, and stop."),
        click.option("--rebuild", multiple=True, metavar="NODE", help="Run this node again; `all`: every one. Repeat."),
    )  # fmt: skip


def request_from(verb: str, flags: dict[str, Any], **more: Any) -> VerbRequest:
    """The request that the flags of a verb spell.

    Args:
        more: Fields of the request beyond model, data, target, config and seed; `config` is put below KEY=VALUE.

    Raises:
        UserError: A value of the wrong form.
    """
    from edgekd.pipeline.verbs import VerbRequest

    config = dict(more.pop("config", {})) | nested(parse_assignments(tuple(flags["fields"]), "KEY=VALUE"))
    given = {
        "verb": verb,
        "model": model_source_from_flags(flags).plain(),
        "data": existing(flags.get("data")),
        "target": flags.get("target"),
        "config": config,
        "seed": flags["seed"],
        **more,
    }
    return VerbRequest.parse(given, "the flags")


def nested(assignments: dict[str, Any]) -> dict[str, Any]:
    """`{"augment.flip": False}` as `{"augment": {"flip": False}}`."""
    tree: dict[str, Any] = {}
    for key, value in assignments.items():
        *parents, last = key.split(".")
        place = tree
        for part in parents:
            place = place.setdefault(part, {})
        place[last] = value
    return tree


def existing(path: str | None) -> str | None:
    """A path that exists in its absolute form, any other text (a card's name) as it is."""
    return absolute(path) if path is not None and Path(path).expanduser().exists() else path


def carry_out(request: VerbRequest, flags: dict[str, Any]) -> int:
    """Plans or runs a request, prints the result, and returns the exit code: 1 where a limit is not kept."""
    from edgekd.cli.work import leaders, live, print_plan
    from edgekd.pipeline.execute import Workspace
    from edgekd.pipeline.verb_run import VerbRun

    with live(reporter_for(flags["output_format"], verbosity_of(flags["verbose"], flags["quiet"]))) as reporter:
        workspace = Workspace(
            out=flags["out"],
            store=flags["store"],
            reporter=leaders(reporter),
            execution=Execution(device=flags.get("device", "auto"), threads=flags.get("cpu_threads")),
            rebuild=frozenset(flags["rebuild"]),
        )
        run = VerbRun(workspace, request)
        if flags["dry_run"]:
            return print_plan(run.plan(), flags["output_format"])
        outcome = run.execute()
    if outcome is None:
        return 0
    _print_outcome(outcome, flags)
    return GateFailed.exit_code if outcome.main.metrics.get("limit_held") is False else 0


def _print_outcome(outcome: VerbOutcome, flags: dict[str, Any]) -> None:
    if flags["output_format"] == "json":
        click.echo(json.dumps(outcome.metrics, indent=1))
        return
    for sentence in outcome.decisions:
        click.echo(f"• {sentence}")
    click.echo()
    rows = [[name, _shown(value)] for name, value in outcome.main.metrics.items()]
    print_table("", [outcome.main.name, "value"], rows)
    click.echo(f"\npackage  {outcome.folder}")
    for what, command in outcome.next_steps:
        click.echo(f"{what}:\n  {command}")


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return significant(value)
    if isinstance(value, dict) and len(value) > MOST_SHOWN:
        return f"{len(value)} entries, in the package's metrics.json"
    return str(value) if isinstance(value, str | int) else json.dumps(value)
