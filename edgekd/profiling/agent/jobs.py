"""Jobs: submitted once, worked on without whoever submitted them, watched from anywhere, fetched when they are done.

A job's id is the digest of what is to be measured, so that the same question asked again, after a connection was lost,
finds the job that answers it. The worker has a session of its own: a hang-up of the connection does not reach it.
Standard library of Python 3.10 only: it runs on the board.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgekd.profiling.agent.folder import KEPT_S, Folder, require_space
from edgekd.profiling.agent.queue import ALIVE_FILE, STATUS_FILE, is_alive, waited_for
from edgekd.profiling.agent.wire import BAD_REQUEST, NO_JOB, AgentError, agent_error, read_json, write_json

SPEC_FILE = "spec.json"
RESULT_FILE = "result.json"
LOG_FILE = "log.txt"
CANCEL_FILE = "cancel"
RESERVE_FILE = "reserve"
"""Space that is held for the last status of a job on a disk that others fill."""
ENDED = ("done", "failed")
WATCH_S = 0.5
_RESERVED_BYTES = 1 << 16
BEAT_S = 15.0
"""A watcher says something at least this often, so that the other side notices a connection that died silently."""


def submit(folder: Folder, job_id: str, spec: dict[str, Any], *, agent: Path | None = None) -> dict[str, Any]:
    """Starts a job, or finds the one with this id that waits, runs or is done; returns its status with `joined`.

    Args:
        folder: Of the agent.
        job_id: Letters and digits.
        spec: See `bench.py`.
        agent: What the worker runs; the agent that runs now when not given.

    Raises:
        AgentError: Files that were not pushed, or a folder that cannot be written.
    """
    job = _job(folder.jobs, job_id)
    try:
        folder.jobs.mkdir(parents=True, exist_ok=True)
        lock = waited_for(folder.root / "submit.lock")
    except OSError as err:
        raise agent_error(err, folder.jobs) from err
    try:
        status = read_json(job / STATUS_FILE)
        state = None if status is None else status.get("state")
        # A job that failed may still be alive for a moment: its worker has written its last words and ends.
        if status is not None and (state == "done" or (state != "failed" and is_alive(job))):
            return {**status, "joined": True}
        require_space(folder.jobs, 0)
        files = [*(file for engine in spec["engines"] for file in engine["files"]), *spec.get("files", ())]
        absent = folder.missing(str(file) for file in files)
        if absent:
            raise AgentError(BAD_REQUEST, f"files that were not pushed: {', '.join(sorted(set(absent)))}")
        shutil.rmtree(job, ignore_errors=True)  # it failed, or its worker was killed
        return {**_start(folder, job, spec, agent or Path(sys.argv[0]).resolve()), "joined": False}
    except OSError as err:
        shutil.rmtree(job, ignore_errors=True)
        raise agent_error(err, job) from err
    finally:
        os.close(lock)


def watch(
    folder: Folder,
    job_id: str,
    on_status: Callable[[dict[str, Any]], None],
    *,
    clock_s: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Tells of a job until it has ended: each change of its status, and a sign of life now and then.

    Raises:
        AgentError: There is no such job.
    """
    said: dict[str, Any] | None = None
    said_at = clock_s()
    while True:
        status = state_of(folder, job_id)
        if status != said or clock_s() - said_at >= BEAT_S:
            on_status(status)
            said, said_at = status, clock_s()
        if status["state"] in ENDED:
            return
        sleep(WATCH_S)


def state_of(folder: Folder, job_id: str) -> dict[str, Any]:
    """The status of a job, fetched ones included; one whose worker disappeared has failed.

    Raises:
        AgentError: There is no such job.
    """
    job = _found(folder, job_id)
    # In this order: a worker that ends between the two looks has written its last status before.
    alive = is_alive(job)
    status = read_json(job / STATUS_FILE)
    if status is None:
        raise AgentError(NO_JOB, f"the job {job_id[:12]} was removed from the board")
    if status.get("state") in ENDED or alive:
        return status
    log = tail(job / LOG_FILE)
    return {
        **status,
        "state": "failed",
        "message": "the measurement was killed on the board" + (f"; its last words: {log}" if log else ""),
        "hint": "the board was restarted, ran out of memory, or ends a user's processes at logout (systemd's "
        "KillUserProcesses=yes; `loginctl enable-linger` keeps them)",
    }


def result(folder: Folder, job_id: str) -> dict[str, Any]:
    """What a job that is done has found.

    Raises:
        AgentError: No such job, or it is not done.
    """
    job = _found(folder, job_id)
    found = read_json(job / RESULT_FILE)
    if found is None or (read_json(job / STATUS_FILE) or {}).get("state") != "done":
        raise AgentError(NO_JOB, f"the job {job_id[:12]} has no result")
    return found


def release(folder: Folder, job_id: str) -> None:
    """Notes that the result arrived: the next job of this id measures anew. The result stays a while for others."""
    job, aside = folder.jobs / job_id, folder.fetched / job_id
    if not job.is_dir():
        return
    try:
        folder.fetched.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(job, aside)
        os.utime(aside)
    except OSError:
        shutil.rmtree(job, ignore_errors=True)  # a full disk: then nothing is kept
    folder.tidy()
    _remove_forgotten(folder)


def cancel(folder: Folder, job_id: str) -> bool:
    """Ends a job and removes it; whether there was one that ran."""
    job = _job(folder.jobs, job_id)
    running = is_alive(job)
    if running:
        (job / CANCEL_FILE).touch()  # the worker looks for it, ends what it started and restores the clocks
        for _ in range(100):
            if not is_alive(job):
                break
            time.sleep(0.1)
    shutil.rmtree(job, ignore_errors=True)
    return running


def tail(path: Path, limit: int = 400) -> str:
    """The end of a log, on one line."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return " | ".join(line.strip() for line in text.splitlines() if line.strip())[-limit:]


def _remove_forgotten(folder: Folder) -> None:
    """Removes jobs that ended long ago and that nobody fetched."""
    for job in folder.jobs.glob("*"):
        try:
            forgotten = (job / STATUS_FILE).stat().st_mtime < time.time() - KEPT_S
        except OSError:
            continue
        if forgotten and not is_alive(job):
            shutil.rmtree(job, ignore_errors=True)


def _start(folder: Folder, job: Path, spec: dict[str, Any], agent: Path) -> dict[str, Any]:
    job.mkdir(parents=True)
    write_json(job / SPEC_FILE, spec)
    (job / RESERVE_FILE).write_bytes(b"\0" * _RESERVED_BYTES)
    # The worker inherits the lock, so that there is no moment at which a new job seems dead.
    alive = waited_for(job / ALIVE_FILE)
    try:
        status = {"state": "queued", "submitted_ns": time.time_ns(), "ahead": 0, "job": job.name}
        write_json(job / STATUS_FILE, status)
        with (job / LOG_FILE).open("wb") as log:
            subprocess.Popen(
                [sys.executable, str(agent), "work", job.name],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=(alive,),
                cwd=folder.root,
            )
        return status
    finally:
        os.close(alive)


def _job(place: Path, job_id: str) -> Path:
    if not job_id.isalnum():
        raise AgentError(BAD_REQUEST, f"{job_id!r} is not the id of a job")
    return place / job_id


def _found(folder: Folder, job_id: str) -> Path:
    for place in (folder.jobs, folder.fetched):
        if (job := _job(place, job_id)).is_dir():
            return job
    raise AgentError(NO_JOB, f"there is no job {job_id[:12]} on the board")
