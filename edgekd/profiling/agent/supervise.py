"""Has engines timed in a process of its own and survives what they do to it.

An engine that crashes the process, or that stops making progress, is an entry with that reason; the others are timed
again without it. In a job of units, which compare engines, it ends the job. Standard library of Python 3.10 only.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from edgekd.profiling.agent.bench import MEASURED_FILE, WRITE_FAILED
from edgekd.profiling.agent.jobs import CANCEL_FILE, LOG_FILE, tail
from edgekd.profiling.agent.pulse import EXTRAS, OPENING, PULSE_FILE, RUNNING, pulse_in
from edgekd.profiling.agent.wire import AgentError, agent_error, read_json

TIME_LIMIT = "time-limit"
CANCELLED = "cancelled"
CRASHED = "crashed"
FAILED = "failed"
KEPT = ("precise", "before", "after", "took_s", "floating", "unit_ends_s")
"""What goes home of a run beside its engines' entries."""
WATCH_S = 0.5


class Supervisor:
    """Collects the entries of a job's engines.

    Args:
        job: The job's folder.
        spec: The job; its time limit starts now.
        lock: Handle of the board's lock. The measuring process inherits it: should the worker be killed, the board
            stays taken until that process ends as well.

    Attributes:
        entries: By the engine's index: what was measured and the number of its run, or a failure.
        runs: Circumstances of each run. A run holds engines that took turns with each other: all of one thread count,
            unless memory did not suffice.
    """

    def __init__(self, job: Path, spec: dict[str, Any], lock: int) -> None:
        self.entries: dict[int, dict[str, Any]] = {}
        self.runs: list[dict[str, Any]] = []
        self._job, self._spec, self._lock = job, spec, lock
        self._deadline = time.monotonic() + float(spec["limit_s"])

    def measure(self, indices: list[int], share: tuple[float, float]) -> None:
        """Adds the entries of engines that are timed against each other.

        Args:
            indices: Of the engines.
            share: Begin and end of this work within the whole job's, in [0, 1].

        Raises:
            AgentError: The time of the job is up, it was cancelled, or the results cannot be written.
        """
        left = list(indices)
        while left:
            blame = self._bench(left, share)
            found = read_json(self._job / MEASURED_FILE)
            if blame is None and found is not None:
                if "units" in self._spec and found["failures"]:
                    index, why = next(iter(found["failures"].items()))
                    raise AgentError(FAILED, f"{self._label(int(index))}: {why}")
                run = len(self.runs)
                self.entries.update({int(index): {**entry, "run": run} for index, entry in found["measured"].items()})
                self.entries.update({int(index): {"failure": why} for index, why in found["failures"].items()})
                self.runs.append({key: found[key] for key in KEPT if key in found})
                left = [int(index) for index in found["left"]]
                continue
            index, why = blame or (-1, tail(self._job / LOG_FILE))
            if index not in left:
                raise AgentError(CRASHED, f"the measuring process ended without a result: {why}")
            if "units" in self._spec:
                raise AgentError(CRASHED, f"{self._label(index)}: {why}")
            self.entries[index] = {"failure": why}
            left.remove(index)

    def _label(self, index: int) -> str:
        return str(self._spec["engines"][index]["label"])

    def _bench(self, indices: list[int], share: tuple[float, float]) -> tuple[int, str] | None:
        """Runs the measuring process; None when it came to its end, else its last engine and what happened."""
        for name in (MEASURED_FILE, PULSE_FILE):
            (self._job / name).unlink(missing_ok=True)
        engines, part = ",".join(map(str, indices)), f"{share[0]}:{share[1]}"
        ended, held = os.pipe()
        with (self._job / LOG_FILE).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, sys.argv[0], "bench", self._job.name, engines, part],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=(self._lock, held),
            )
        os.close(held)
        try:
            hung = self._watched(process, ended)
        finally:
            _end(process)
            os.close(ended)
        if hung is None and process.returncode == 0:
            return None
        phase, index, _ = pulse_in(self._job / PULSE_FILE) or ("", -1, 0)
        if phase == EXTRAS:
            return None  # everything that was measured is on the disk: only what came on top is lost
        if hung is None and process.returncode >= WRITE_FAILED:
            code = process.returncode - WRITE_FAILED
            raise agent_error(OSError(code, os.strerror(code)), self._job / MEASURED_FILE)
        return index, hung or self._last_words(process.returncode, phase)

    def _watched(self, process: subprocess.Popen[bytes], ended: int) -> str | None:
        """Waits for the end; a sentence when the process stopped making progress.

        The end of a pipe tells of the end of the process: `Popen.wait` would look twenty times a second, and each look
        takes processor time from what is measured.
        """
        seen, since = pulse_in(self._job / PULSE_FILE), time.monotonic()
        while not select.select([ended], [], [], WATCH_S)[0]:
            self._check_limits()
            if (pulse := pulse_in(self._job / PULSE_FILE)) != seen:
                seen, since = pulse, time.monotonic()
            opening = seen is not None and seen[0] == OPENING
            limit_s = float(self._spec["open_s" if opening else "stall_s"])
            if time.monotonic() - since > limit_s:
                doing = "to open" if opening else "for a few inferences (--time-limit)"
                return f"it hung on the board: {limit_s:.0f} s were not enough {doing}"
        process.wait()
        return None

    def _check_limits(self) -> None:
        if (self._job / CANCEL_FILE).exists():
            raise AgentError(CANCELLED, "the job was cancelled")
        if time.monotonic() > self._deadline:
            raise AgentError(
                TIME_LIMIT,
                f"the job took longer than its limit of {self._spec['limit_s']:.0f} s",
                "measure fewer models at once, or for a shorter --duration",
            )

    def _last_words(self, code: int, phase: str) -> str:
        doing = {OPENING: "while it was opened", RUNNING: "while it ran"}.get(phase, "")
        log = tail(self._job / LOG_FILE) if code > 0 else ""
        return f"{_death(code)} {doing}".strip() + (f": {log}" if log else "")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and what it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _death(code: int) -> str:
    if code >= 0:
        return f"the measuring process ended with exit code {code}"
    name = signal.Signals(-code).name if -code in {int(member) for member in signal.Signals} else str(-code)
    what = " (probably out of memory)" if name == "SIGKILL" else ""
    return f"the runtime crashed with {name}{what}"
