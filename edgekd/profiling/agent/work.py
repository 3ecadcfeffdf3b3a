"""The worker of a job: waits for its turn, holds the board and its clocks, and writes down how the job ended.

Thread counts are measured one after the other: idle pools of several threads spin and disturb the rest. Standard
library of Python 3.10 only.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from edgekd.profiling.agent import clocks
from edgekd.profiling.agent.builds import built
from edgekd.profiling.agent.engines import availability
from edgekd.profiling.agent.facts import machine
from edgekd.profiling.agent.folder import Folder
from edgekd.profiling.agent.jobs import CANCEL_FILE, RESERVE_FILE, RESULT_FILE, SPEC_FILE
from edgekd.profiling.agent.queue import STATUS_FILE, turn
from edgekd.profiling.agent.supervise import CANCELLED, CRASHED, TIME_LIMIT, Supervisor
from edgekd.profiling.agent.wire import AgentError, agent_error, read_json, write_json


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
    if "build" in spec:
        return _build(folder, job, spec)
    engines = spec["engines"]
    groups: dict[int, list[int]] = {}
    for index, entry in enumerate(engines):
        groups.setdefault(int(entry["threads"]), []).append(index)
    supervisor = Supervisor(job, spec, lock)
    with _clocks(folder, bool(spec["lock_clocks"])) as said:
        for number, indices in enumerate(groups.values()):
            supervisor.measure(indices, (number / len(groups), (number + 1) / len(groups)))
    entries = supervisor.entries
    return {
        "entries": [{"label": engines[index]["label"], **entries[index]} for index in range(len(engines))],
        "runs": supervisor.runs,
        "groups": len(groups),
        "machine": machine(),
        "runtimes": availability(sys.executable),
        "clocks": said,
        "finished_s": time.time(),
    }


def _build(folder: Folder, job: Path, spec: dict[str, Any]) -> dict[str, Any]:
    """What a job that builds engines found."""
    status = read_json(job / STATUS_FILE) or {}
    told: dict[str, Any] = {}

    def tell(doing: str, done: float) -> None:
        now = {"doing": doing, "progress": round(done, 2), "task": f"TensorRT: {doing}"}
        if now != told:
            told.update(now)
            write_json(job / STATUS_FILE, {**status, **now})

    return {**built(folder, job, spec, tell), "machine": machine(), "finished_s": time.time()}


def _clocks(folder: Folder, lock: bool) -> AbstractContextManager[list[str]]:
    """Fixes the clocks for a block when asked to."""
    return clocks.locked(folder.root) if lock else nullcontext([])


def _note(job: Path, status: dict[str, Any]) -> None:
    """Writes the status of a waiting job when it changed, and ends it when it was cancelled."""
    if (job / CANCEL_FILE).exists():
        raise AgentError(CANCELLED, "the job was cancelled")
    if status != read_json(job / STATUS_FILE):
        write_json(job / STATUS_FILE, status)


def _terminated(number: int, frame: object) -> None:
    # As an exception it passes through the blocks that end processes and restore clocks.
    raise AgentError(CANCELLED, "the worker was told to end (SIGTERM)")
