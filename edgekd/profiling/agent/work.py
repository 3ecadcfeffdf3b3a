"""The worker of a job: waits for its turn, has the engines timed in a process of their own, and survives what they do.

An engine that crashes the process, or that stops making progress, is an entry with that reason; the others are timed
again without it. Thread counts are measured one after the other: idle pools of several threads spin and disturb the
rest. Standard library of Python 3.10 only.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from edgekd.profiling.agent import clocks
from edgekd.profiling.agent.bench import MEASURED_FILE, OPENING, PULSE_FILE, RUNNING, WRITE_FAILED, pulse_in
from edgekd.profiling.agent.engines import availability
from edgekd.profiling.agent.facts import machine
from edgekd.profiling.agent.folder import Folder
from edgekd.profiling.agent.jobs import CANCEL_FILE, LOG_FILE, RESERVE_FILE, RESULT_FILE, SPEC_FILE, tail
from edgekd.profiling.agent.queue import STATUS_FILE, turn
from edgekd.profiling.agent.wire import AgentError, agent_error, read_json, write_json

TIME_LIMIT = "time-limit"
CANCELLED = "cancelled"
CRASHED = "crashed"
WATCH_S = 0.5


def work(folder: Folder, job_id: str) -> None:
    """Runs a job to its end; its status says how it ended."""
    job = folder.jobs / job_id
    status = {**(read_json(job / STATUS_FILE) or {}), "pid": os.getpid()}
    signal.signal(signal.SIGTERM, _terminated)
    try:
        spec = read_json(job / SPEC_FILE) or {}
        lock = turn(
            job,
            folder,
            limit_s=float(spec["queue_s"]),
            on_wait=lambda ahead: _note(job, {**status, "state": "queued", "ahead": ahead}),
        )
        if lock is None:
            raise AgentError(TIME_LIMIT, f"the board was busy with other jobs for {spec['queue_s']:.0f} s")
        status |= {"state": "running", "ahead": 0, "started_s": time.time()}
        write_json(job / STATUS_FILE, status)
        write_json(job / RESULT_FILE, _result(folder, job, spec, lock))
        end: dict[str, Any] = {"state": "done", "progress": 1.0}
    except AgentError as err:
        end = {"state": "failed", **err.plain()}
    except OSError as err:
        end = {"state": "failed", **agent_error(err, job).plain()}
    except Exception as err:  # noqa: BLE001 - whoever waits for the job must hear of it
        end = {"state": "failed", "error": CRASHED, "message": f"the agent broke: {type(err).__name__}: {err}"}
    (job / RESERVE_FILE).unlink(missing_ok=True)  # room for the last words on a full disk
    write_json(job / STATUS_FILE, {**status, **end, "finished_s": time.time()})


def _result(folder: Folder, job: Path, spec: dict[str, Any], lock: int) -> dict[str, Any]:
    """Everything that goes home, measured while the board is held."""
    clocks.restore(folder.root)  # what a measurement that was killed left behind
    deadline = time.monotonic() + float(spec["limit_s"])
    engines = spec["engines"]
    groups: dict[int, list[int]] = {}
    for index, entry in enumerate(engines):
        groups.setdefault(int(entry["threads"]), []).append(index)
    entries: dict[int, dict[str, Any]] = {}
    runs = []
    with _clocks(folder, bool(spec["lock_clocks"])) as said:
        for number, indices in enumerate(groups.values()):
            share = (number / len(groups), (number + 1) / len(groups))
            found, run = _group(job, spec, indices, share, lock, deadline)
            entries.update(found)
            runs.append(run)
    return {
        "entries": [{"label": engines[index]["label"], **entries[index]} for index in range(len(engines))],
        "runs": runs,
        "machine": machine(),
        "runtimes": availability(sys.executable),
        "clocks": said,
        "finished_s": time.time(),
    }


def _clocks(folder: Folder, lock: bool) -> AbstractContextManager[list[str]]:
    """Fixes the clocks for a block when asked to."""
    return clocks.locked(folder.root) if lock else nullcontext([])


def _group(
    job: Path, spec: dict[str, Any], indices: list[int], share: tuple[float, float], lock: int, deadline: float
) -> tuple[dict[int, dict[str, Any]], dict[str, Any]]:
    """Entries of engines that are timed against each other, and the circumstances."""
    entries: dict[int, dict[str, Any]] = {}
    left = list(indices)
    while left:
        blame = _bench(job, spec, left, share, lock, deadline)
        found = read_json(job / MEASURED_FILE)
        if blame is None and found is not None:
            entries.update({int(index): entry for index, entry in found["measured"].items()})
            entries.update({int(index): {"failure": why} for index, why in found["failures"].items()})
            return entries, {key: found[key] for key in ("precise", "before", "after", "took_s", "floating")}
        index, why = blame or (-1, "")
        if index not in left:
            raise AgentError(CRASHED, f"the measuring process ended without a result: {why or tail(job / LOG_FILE)}")
        entries[index] = {"failure": why}
        left.remove(index)
    return entries, {}


def _bench(
    job: Path, spec: dict[str, Any], indices: list[int], share: tuple[float, float], lock: int, deadline: float
) -> tuple[int, str] | None:
    """Runs the measuring process; None when it came to its end, else which engine it was busy with and what happened.

    Raises:
        AgentError: The time of the whole job is up, or it was cancelled.
    """
    (job / MEASURED_FILE).unlink(missing_ok=True)
    (job / PULSE_FILE).unlink(missing_ok=True)
    command = [sys.executable, sys.argv[0], "bench", job.name, ",".join(map(str, indices)), f"{share[0]}:{share[1]}"]
    # It inherits the lock of the board: should this worker be killed, the board stays taken until it ends as well.
    ended, held = os.pipe()
    with (job / LOG_FILE).open("ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, pass_fds=(lock, held)
        )
    os.close(held)
    try:
        why = _watched(process, ended, job, spec, deadline)
    finally:
        _end(process)
        os.close(ended)
    if why is None and process.returncode >= WRITE_FAILED:
        code = process.returncode - WRITE_FAILED
        raise agent_error(OSError(code, os.strerror(code)), job / MEASURED_FILE)
    phase, index, _ = pulse_in(job / PULSE_FILE) or ("", -1, 0)
    if why is None and process.returncode == 0:
        return None
    doing = {OPENING: "while it was opened", RUNNING: "while it ran"}.get(phase, "")
    words = f": {said}" if process.returncode > 0 and (said := tail(job / LOG_FILE)) else ""
    return index, why or f"{_death(process.returncode)} {doing}".strip() + words


def _watched(
    process: subprocess.Popen[bytes], ended: int, job: Path, spec: dict[str, Any], deadline: float
) -> str | None:
    """Waits for the end; a sentence when it stopped making progress.

    The end of a pipe tells of the end of the process: `Popen.wait` would look twenty times a second, and each look
    takes processor time from what is measured.
    """
    limits = {OPENING: float(spec["open_s"])}
    seen, since = pulse_in(job / PULSE_FILE), time.monotonic()
    while True:
        if select.select([ended], [], [], WATCH_S)[0]:
            process.wait()
            return None
        now = time.monotonic()
        if (job / CANCEL_FILE).exists():
            raise AgentError(CANCELLED, "the job was cancelled")
        if now > deadline:
            raise AgentError(
                TIME_LIMIT,
                f"the job took longer than its limit of {spec['limit_s']:.0f} s",
                "measure fewer models at once, or for a shorter --duration",
            )
        if (pulse := pulse_in(job / PULSE_FILE)) != seen:
            seen, since = pulse, now
        limit = limits.get(seen[0] if seen else "", float(spec["stall_s"]))
        if now - since > limit:
            doing = "to open" if seen and seen[0] == OPENING else "for a few inferences"
            return f"it hung on the board: {limit:.0f} s were not enough {doing} (--time-limit)"


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


def _note(job: Path, status: dict[str, Any]) -> None:
    """Writes the status of a waiting job when it changed, and ends it when it was cancelled."""
    if (job / CANCEL_FILE).exists():
        raise AgentError(CANCELLED, "the job was cancelled")
    if status != read_json(job / STATUS_FILE):
        write_json(job / STATUS_FILE, status)


def _terminated(number: int, frame: object) -> None:
    # As an exception it passes through the blocks that end processes and restore clocks.
    raise AgentError(CANCELLED, "the worker was told to end (SIGTERM)")
