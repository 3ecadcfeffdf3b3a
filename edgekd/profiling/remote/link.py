"""A connection to a board that may break: jobs are followed through it, and found again when it comes back.

The measurement belongs to the board once it was submitted: it goes on without this machine. What failed there is never
a measurement here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgekd.core.events import Reporter
from edgekd.errors import DeviceUnavailable
from edgekd.profiling.remote.board import Board, refusal
from edgekd.profiling.remote.failures import PASSING, ConnectionFailed

PATIENCE_S = 120.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 15.0


@dataclass(frozen=True)
class Link:
    """A connection that is taken up again.

    Attributes:
        board: At its other end.
        reporter: Told of progress.
        patience_s: How long a lost connection is tried again.
        clock_s: Monotonic seconds.
        sleep: Waits.
        counts: Show how far a job is; one that asks for many jobs counts in its own way.
        failed: Makes the error for a job that failed, from the board's name and the job's last status.
    """

    board: Board
    reporter: Reporter
    patience_s: float = PATIENCE_S
    clock_s: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    counts: bool = True
    failed: Callable[[str, Mapping[str, Any]], Exception] = refusal

    def result_of(self, job_id: str, spec: dict[str, Any]) -> dict[str, Any]:
        """What a job found: started, or found where the board has it already, and put aside once its result is here.

        Raises:
            DeviceUnavailable: It failed, or the connection stayed lost.
        """
        status = self.patient(lambda: self.board.submit(job_id, spec), None)
        if status["joined"]:
            name, state = self.board.name, status["state"]
            self.reporter.message(f"• {name} has this job already; it is {state}. Its result is taken.")
        self.follow(job_id)
        result: dict[str, Any] = self.patient(lambda: self.board.ask("result", job_id), job_id)
        self.patient(lambda: self.board.ask("release", job_id), job_id)
        return result

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
            raise self.failed(self.board.name, last)

    def patient(self, action: Callable[[], Any], job_id: str | None) -> Any:
        """The result of an action that is tried again while the connection may come back.

        Args:
            action: What to try.
            job_id: Of the job that goes on meanwhile; None while it is not known to have begun.

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
                    raise _lost(err, job_id) from err
                self.reporter.message(f"{err.message} Trying again.", level="warning")
                self.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _show(self, status: dict[str, Any]) -> None:
        where = self.board.name
        if status["state"] == "queued" and status.get("ahead"):
            self.reporter.message(f"• {where}: waiting for {status['ahead']} other job(s) of the board.")
        elif not self.counts:
            return
        elif status["state"] == "running":
            task = status.get("task", "measure")
            self.reporter.progress(f"{where}: {task}, percent", round(100 * status.get("progress", 0.0)), 100)
        elif status["state"] == "done":
            self.reporter.progress(f"{where}: {status.get('task', 'measure')}, percent", 100, 100)


def _lost(err: ConnectionFailed, job_id: str | None) -> DeviceUnavailable:
    if job_id is None:
        return err
    return DeviceUnavailable(
        f"{err.message} The job {job_id[:12]} goes on there without this machine.",
        hint="run the same command again to fetch its result; nothing is measured twice",
    )
