"""Boards on the command line: the flags that name them, and `edgekd profile` on one or on many."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgekd.cli.console import print_table, reporter_for
from edgekd.cli.options import names_for, on_boards, parse_counts, section, verbosity_of
from edgekd.cli.work import live
from edgekd.errors import EdgekdError, UserError

if TYPE_CHECKING:
    from edgekd.core.events import Reporter
    from edgekd.core.stage import BoardAccess
    from edgekd.profiling.remote.boards import Outcome
    from edgekd.profiling.remote.lab import LabBoard
    from edgekd.profiling.remote.request import BoardPlan, Candidate

F = TypeVar("F", bound=Callable[..., Any])
TRAINING_PLACES = ("auto", "cpu", "cuda")
_ONLY_BOARDS = ("tag", "lock_clocks", "device_python", "workers")
_NOT_ON_BOARDS = {"offline_samples": "--offline"}
_COLUMNS = ["model", "runtime", "threads", "p50 ms", "±", "p90", "p99", "per s", "N"]


def board_options(function: F) -> F:
    """`--device`, `--lab` and what belongs to them."""
    flags = _flags("Measure on boards of a lab.", "Only boards of the lab with this tag or name.")
    workers = click.option(
        "--workers",
        metavar="ray://HOST:PORT",
        help="Reach the boards of the lab from the machines of this Ray cluster; default: from this one.",
    )
    return section("On a board", *flags, workers)(function)


def one_board_options(function: F) -> F:
    """The same for verbs that take one board."""
    flags = _flags("Measure on a board of a lab.", "The board of the lab with this tag or name.")
    return section("On a board", *flags)(function)


def _flags(lab: str, tag: str) -> tuple[Callable[[F], F], ...]:
    return (
        click.option("--device", metavar="ssh://USER@HOST[:PORT]", help="Measure on this board, over ssh."),
        click.option("--lab", type=click.Path(path_type=Path), metavar="LAB.YAML", help=lab),
        click.option("--tag", multiple=True, help=f"{tag} Repeat: all of them."),
        *on_boards(),
    )


def board_from_flags(flags: Mapping[str, Any]) -> BoardAccess | None:
    """The one board that the flags of `one_board_options` name; None where they name none.

    Raises:
        UserError: Flags that do not fit together, or that leave several boards of a lab.
    """
    from edgekd.core.stage import BoardAccess
    from edgekd.profiling.remote.address import parse_address
    from edgekd.profiling.remote.board import PYTHON
    from edgekd.profiling.remote.lab import load_lab

    if not boards_wanted(flags):
        return None
    if flags["device"]:
        parse_address(flags["device"], "--device")
        python = flags["device_python"] or PYTHON
        return BoardAccess(address=flags["device"], python=python, lock_clocks=flags["lock_clocks"])
    found = load_lab(flags["lab"]).chosen(flags["tag"], "--tag")
    if len(found) > 1:
        raise UserError(
            f"This verb takes one board, and the lab has {len(found)} that fit: {', '.join(found)}.",
            hint=f"--tag {next(iter(found))}",
        )
    ((name, board),) = found.items()
    return BoardAccess(address=board.address, python=board.python, lock_clocks=flags["lock_clocks"], name=name)


def train_and_board(flags: Mapping[str, Any]) -> tuple[str, BoardAccess | None]:
    """Where to train, and the board to measure on, from the `--device` flags of the verbs that do both.

    Raises:
        UserError: Neither a place to train nor an address, two of a kind, or flags of a board without one.
    """
    boards = [text for text in flags["devices"] if "://" in text]
    places = [text for text in flags["devices"] if "://" not in text]
    for text in places:
        if text not in TRAINING_PLACES:
            raise UserError(
                f"--device {text!r}: expected {', '.join(TRAINING_PLACES)}, or ssh://user@host.",
                hint="--device cuda --device ssh://user@host trains here and measures there",
            )
    for kind in (boards, places):
        if len(kind) > 1:
            raise UserError(f"--device names {kind[0]} and {kind[1]}, and a run takes one of them.")
    # The rest is the same as for one board, which has no lab here.
    one = {**flags, "device": boards[0] if boards else None, "lab": None, "tag": (), "workers": None}
    return places[0] if places else TRAINING_PLACES[0], board_from_flags(one)


def boards_wanted(flags: Mapping[str, Any]) -> bool:
    """Whether to measure on boards.

    Raises:
        UserError: Flags of boards without a board, or two ways to name boards.
    """
    if flags["device"] and flags["lab"]:
        raise UserError("--device names one board and --lab many; both were given.", hint="give one of them")
    if not flags["device"] and not flags["lab"]:
        stray = [name for name in _ONLY_BOARDS if flags.get(name)]
        if stray:
            flag = "--" + stray[0].replace("_", "-")
            raise UserError(
                f"{flag} is for boards, and none was named.", hint="add --device ssh://... or --lab lab.yaml"
            )
        return False
    for name, flag in _NOT_ON_BOARDS.items():
        if flags.get(name):
            raise UserError(f"{flag} is measured on this machine only.", hint="leave it out for a board")
    if flags["tag"] and not flags["lab"]:
        raise UserError("--tag chooses boards of a lab file, and none was given.", hint="add --lab lab.yaml")
    if flags.get("workers") and not flags["lab"]:
        raise UserError("--workers reaches the boards of a lab file, and none was given.", hint="add --lab lab.yaml")
    if flags["device_python"] and flags["lab"]:
        raise UserError("--device-python is for one board.", hint="write `python:` beside the board in the lab file")
    return True


def profile_boards(flags: Mapping[str, Any]) -> int:
    """Measures on the named boards, prints the result, and returns the exit code."""
    from edgekd.profiling.remote.request import BoardPlan

    plan = BoardPlan(
        runtimes=tuple(flags["runtimes"]),
        threads=parse_counts(flags["threads"], "--threads"),
        warmup_s=flags["warmup_s"],
        duration_s=flags["duration_s"],
        precision=flags["precision"],
        stall_s=flags["limit_s"],
        lock_clocks=flags["lock_clocks"],
        layers=flags["layers"],
    )
    with live(reporter_for(flags["output_format"], verbosity_of(flags["verbose"], flags["quiet"]))) as reporter:
        return _on_lab(flags, plan, reporter) if flags["lab"] else _on_device(flags, plan, reporter)


def _on_device(flags: Mapping[str, Any], plan: BoardPlan, reporter: Reporter) -> int:
    from edgekd.cli.profile import exit_code_for, print_report
    from edgekd.pipeline.single import workbench
    from edgekd.profiling.remote.address import parse_address
    from edgekd.profiling.remote.board import PYTHON
    from edgekd.profiling.remote.profile import profile_on_board
    from edgekd.profiling.remote.ssh import Ssh

    ssh = Ssh(parse_address(flags["device"], "--device"))
    with workbench(names_for(flags["models"]), flags["archs"]) as bench:
        python = flags["device_python"] or PYTHON
        found = profile_on_board(ssh, _candidates(bench), plan, reporter=reporter, python=python)
    if flags["output_format"] == "json":
        click.echo(json.dumps(found.report.plain(), indent=2))
    else:
        for decision in found.decisions:
            reporter.message(f"• {decision}")
        print_report(found.report, flags["layers"])
    return exit_code_for(found.report.entries)


def _on_lab(flags: Mapping[str, Any], plan: BoardPlan, reporter: Reporter) -> int:
    from edgekd.cli.profile import exit_code_for
    from edgekd.pipeline.single import workbench
    from edgekd.profiling.remote.boards import profile_on_boards
    from edgekd.profiling.remote.boards_ray import check_cluster, profile_on_cluster
    from edgekd.profiling.remote.lab import load_lab

    cluster = None if flags["workers"] is None else check_cluster(flags["workers"])
    lab = load_lab(flags["lab"])
    boards = lab.chosen(flags["tag"], "--tag")
    with workbench(names_for(flags["models"]), flags["archs"]) as bench:
        measured, limit = _candidates(bench), lab.concurrency
        if cluster is None:
            found = profile_on_boards(boards, measured, plan, concurrency=limit, reporter=reporter)
        else:
            found = profile_on_cluster(boards, measured, plan, address=cluster, concurrency=limit, reporter=reporter)
    if flags["output_format"] == "json":
        click.echo(json.dumps({"schema_version": 1, "boards": _plain(boards, found)}, indent=2))
    else:
        _print_lab(boards, found, reporter)
    codes = [o.exit_code if isinstance(o, EdgekdError) else exit_code_for(o.report.entries) for o in found.values()]
    return min((code for code in codes if code), default=0)  # a board without a result before one that is inconclusive


def _candidates(bench: Any) -> list[Candidate]:
    """The bundles of a workbench that a board can take.

    Raises:
        UserError: A bundle of another kind.
    """
    from edgekd.profiling.remote.request import candidate_from_bundle, require_board_format

    for name, bundle in bench.bundles.items():
        require_board_format(name, bundle)
    return [candidate_from_bundle(name, bundle, bench.store.blobs) for name, bundle in bench.bundles.items()]


def _print_lab(boards: Mapping[str, LabBoard], found: Mapping[str, Outcome], reporter: Reporter) -> None:
    rows: list[list[str]] = []
    for name, outcome in found.items():
        place = [name, boards[name].target or ""]
        if isinstance(outcome, EdgekdError):
            rows.append([*place, "", "", "", "failed", "", "", "", "", ""])
            continue
        for decision in outcome.decisions:
            reporter.message(f"• {name}: {decision}")
        rows += [[*place, *_row(entry)] for entry in outcome.report.entries]
    print_table("", ["board", "target", *_COLUMNS], rows, numeric_from=4)
    for name, outcome in found.items():
        if isinstance(outcome, EdgekdError):
            click.echo(f"{name}: {outcome.message}" + (f" hint: {outcome.hint}" if outcome.hint else ""))
            continue
        for entry in outcome.report.entries:
            if entry.failure:
                click.echo(f"{name}: {entry.candidate}@{entry.runtime}: {entry.failure}")
            elif entry.latency and entry.latency.inconclusive:
                click.echo(f"{name}: {entry.candidate}@{entry.runtime}: inconclusive. {entry.latency.inconclusive}")


def _plain(boards: Mapping[str, LabBoard], found: Mapping[str, Outcome]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for name, outcome in found.items():
        facts: dict[str, Any] = {
            "address": boards[name].address,
            "tags": list(boards[name].tags),
            "target": boards[name].target,
        }
        if isinstance(outcome, EdgekdError):
            facts |= {"error": outcome.message, "hint": outcome.hint, "exit_code": outcome.exit_code}
        else:
            facts |= {"report": outcome.report.plain(), "decisions": list(outcome.decisions)}
        plain[name] = facts
    return plain


def _row(entry: Any) -> list[str]:
    latency = entry.latency
    if latency is None:
        return [entry.candidate, entry.runtime, "", "failed", "", "", "", "", ""]
    row = [entry.candidate, entry.runtime, str(latency.threads), f"{latency.p50_ms:.3f}"]
    row += [f"{latency.median_width / 2:.1%}", f"{latency.p90_ms:.3f}", f"{latency.p99_ms:.3f}"]
    return [*row, f"{latency.throughput_per_s:.0f}", str(latency.n)]
