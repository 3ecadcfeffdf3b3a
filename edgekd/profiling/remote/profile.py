"""Profiles bundles on a board: sends what is missing, starts or finds the job, makes a report of its result."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgekd.core.events import Reporter
from edgekd.core.report import ProfileReport
from edgekd.errors import DeviceUnavailable
from edgekd.profiling.agent.engines import ADAPTERS
from edgekd.profiling.remote.board import PYTHON, Board
from edgekd.profiling.remote.link import PATIENCE_S, Link
from edgekd.profiling.remote.request import (
    BoardPlan,
    Candidate,
    fits,
    job_for,
    lacking,
    trials_for,
    usable_runtimes,
)
from edgekd.profiling.remote.results import report_from_result
from edgekd.profiling.remote.ssh import Ssh
from edgekd.runtimes.session import described


@dataclass(frozen=True, kw_only=True)
class BoardProfile:
    """What came home.

    Attributes:
        report: As of a local profile.
        decisions: What was done, and what may have disturbed it.
        outputs: Values of each engine's outputs on the agent's input, by label; for comparing machines.
    """

    report: ProfileReport
    decisions: tuple[str, ...]
    outputs: dict[str, list[list[float]]]


def profile_on_board(
    ssh: Ssh,
    candidates: Sequence[Candidate],
    plan: BoardPlan,
    *,
    reporter: Reporter,
    python: str = PYTHON,
    name: str | None = None,
    among: Sequence[str] = tuple(ADAPTERS),
    patience_s: float = PATIENCE_S,
    clock_s: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> BoardProfile:
    """The latencies of bundles on a board, measured against each other there.

    Candidates that no runtime there takes are left out, and a decision says of each why.

    Args:
        ssh: The board's command line.
        candidates: What to measure.
        plan: How.
        reporter: Told of progress.
        python: The board's interpreter that has the runtime.
        name: Of the board in texts; its address when not given.
        among: Runtimes that are worth installing for a candidate that is left out: those of a card.
        patience_s: How long a lost connection is tried again.
        clock_s: Monotonic seconds.
        sleep: Waits.

    Raises:
        UserError: Bundles or runtimes that no board takes.
        DeviceUnavailable: The board cannot be reached, has no runtime for any of them, or the job failed there.
    """
    board = Board(ssh, python)
    files = {digest: path for candidate in candidates for digest, path in candidate.files.items()}
    known = board.hello(*files)
    runtimes = usable_runtimes(board.name, python, ssh.address.command, plan, known["runtimes"])
    taken = [c for c in candidates if any(fits(c.bundle, runtime) for runtime in runtimes)]
    absent = {c.name: lacking(c.bundle, known["runtimes"], ssh.address.command, among) for c in candidates}
    if not taken and (found := next((entry for entry in absent.values() if entry), None)):
        raise DeviceUnavailable(
            f"{board.name}: {found[0]} is not installed for {python}, and what it has ({', '.join(runtimes)}) runs "
            "none of these models.",
            hint=found[1],
        )
    trials = trials_for(candidates, runtimes, plan)
    wanted = {file for trial in trials for file in trial.files}
    board.push({file: files[file] for file in files if file in wanted and file in known["missing"]}, reporter)
    job_id, spec = job_for(trials, plan)
    result = Link(board, reporter, patience_s, clock_s, sleep).result_of(job_id, spec)
    report, said = report_from_result(result, trials, board=name or board.name, plan=plan)
    said += [_left_out(c, absent[c.name], runtimes, name or board.name) for c in candidates if c not in taken]
    outputs = {entry["label"]: entry["outputs"] for entry in result["entries"] if "outputs" in entry}
    return BoardProfile(report=report, decisions=tuple(said), outputs=outputs)


def _left_out(candidate: Candidate, absent: tuple[str, str] | None, runtimes: Sequence[str], board: str) -> str:
    """Why a candidate is not measured, in a sentence."""
    why = f"{' and '.join(runtimes)} on {board} do not run {described(candidate.bundle)} of this form"
    if absent is not None:
        why = f"{absent[0]} is not on {board} ({absent[1]})"
    return f"{candidate.name} is not measured: {why}."
