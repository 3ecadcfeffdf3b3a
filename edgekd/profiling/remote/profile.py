"""Profiles bundles on a board: sends what is missing, starts or finds the job, follows it through lost connections.

The measurement belongs to the board once it was submitted: it goes on without this machine, and the same request finds
it again. What failed there is never a measurement here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edgekd.core.events import Reporter
from edgekd.core.report import ProfileReport
from edgekd.errors import DeviceUnavailable
from edgekd.profiling.remote.board import PYTHON, Board, refusal
from edgekd.profiling.remote.failures import PASSING, ConnectionFailed
from edgekd.profiling.remote.request import BoardPlan, Candidate, job_for, trials_for, usable_runtimes
from edgekd.profiling.remote.results import report_from_result
from edgekd.profiling.remote.ssh import Ssh

PATIENCE_S = 120.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 15.0


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
    patience_s: float = PATIENCE_S,
    clock_s: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> BoardProfile:
    """The latencies of bundles on a board, measured against each other there.

    Args:
        ssh: The board's command line.
        candidates: What to measure.
        plan: How.
        reporter: Told of progress.
        python: The board's interpreter that has the runtime.
        name: Of the board in texts; its address when not given.
        patience_s: How long a lost connection is tried again.
        clock_s: Monotonic seconds.
        sleep: Waits.

    Raises:
        UserError: Bundles or runtimes that no board takes.
        DeviceUnavailable: The board cannot be reached, has no runtime, or the job failed there.
    """
    board = Board(ssh, python)
    files = {candidate.file: candidate.path for candidate in candidates}
    known = board.hello(*files)
    runtimes = usable_runtimes(board.name, python, ssh.address.command, plan, known["runtimes"])
    trials = trials_for(candidates, runtimes, plan)
    wanted = {trial.file for trial in trials}
    board.push({file: files[file] for file in files if file in wanted and file in known["missing"]}, reporter)
    job_id, spec = job_for(trials, plan)
    status = board.submit(job_id, spec)
    if status["joined"]:
        reporter.message(f"• {board.name} has this job already; it is {status['state']}. Its result is taken.")
    link = _Link(board, reporter, patience_s, clock_s, sleep)
    link.follow(job_id)
    result = link.patient(lambda: board.ask("result", job_id), job_id)
    link.patient(lambda: board.ask("release", job_id), job_id)
    report, said = report_from_result(result, trials, board=name or board.name, plan=plan)
    outputs = {entry["label"]: entry["outputs"] for entry in result["entries"] if "outputs" in entry}
    return BoardProfile(report=report, decisions=tuple(said), outputs=outputs)


@dataclass(frozen=True)
class _Link:
    """A connection that is taken up again."""

    board: Board
    reporter: Reporter
    patience_s: float
    clock_s: Callable[[], float]
    sleep: Callable[[float], None]

    def follow(self, job_id: str) -> None:
        """Waits for the end of a job and shows its progress.

        Raises:
            DeviceUnavailable: It failed, or the connection stayed lost.
        """
        last: dict[str, Any] = {}

        def tell(status: dict[str, Any]) -> None:
            last.clear()
            last.update(status)
            self._show(status)

        while last.get("state") not in ("done", "failed"):
            self.patient(lambda: self.board.watch(job_id, tell), job_id)
        if last["state"] == "failed":
            self.board.ask("release", job_id)
            raise refusal(self.board.name, last)

    def patient(self, action: Callable[[], Any], job_id: str) -> Any:
        """The result of an action that is tried again while the connection may come back.

        Raises:
            DeviceUnavailable: It did not.
        """
        pause_s, since = _FIRST_PAUSE_S, self.clock_s()
        while True:
            try:
                return action()
            except ConnectionFailed as err:
                # `action` may have worked for minutes before the connection broke: patience starts with each loss.
                if pause_s == _FIRST_PAUSE_S:
                    since = self.clock_s()
                if err.kind not in PASSING or self.clock_s() - since > self.patience_s:
                    raise DeviceUnavailable(
                        f"{err.message} The job {job_id[:12]} goes on there without this machine.",
                        hint="run the same command again to fetch its result; nothing is measured twice",
                    ) from err
                self.reporter.message(f"{err.message} Trying again.", level="warning")
                self.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _show(self, status: dict[str, Any]) -> None:
        where = self.board.name
        if status["state"] == "queued" and status.get("ahead"):
            self.reporter.message(f"• {where}: waiting for {status['ahead']} other job(s) of the board.")
        elif status["state"] == "running":
            self.reporter.progress(f"{where}: measure, percent", round(100 * status.get("progress", 0.0)), 100)
        elif status["state"] == "done":
            self.reporter.progress(f"{where}: measure, percent", 100, 100)
