"""One measurement at a time on a board, in the order of arrival, whoever submitted it.

All locks are the kernel's (`flock`): they end with their processes, however those end, so that a job whose worker was
killed can be told from one that runs, and never blocks the queue. Standard library of Python 3.10 only.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

from edgekd.profiling.agent.folder import Folder
from edgekd.profiling.agent.wire import read_json

STATUS_FILE = "status.json"
ALIVE_FILE = "alive"
POLL_S = 1.0
"""A waiting job looks this often whether it is its turn: rarely enough to leave the one that is measured alone."""


def taken(path: Path) -> int | None:
    """A handle that holds the lock of a file, or None when somebody else does. Closing it gives the lock back."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except BaseException:
        os.close(handle)
        raise
    return handle


def waited_for(path: Path) -> int:
    """A handle that holds the lock of a file; waits for it. For locks that are held for moments."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.flock(handle, fcntl.LOCK_EX)
    return handle


def is_alive(job: Path) -> bool:
    """Whether the worker of a job still runs. Looks with a shared lock, so that two lookers do not fool each other."""
    try:
        handle = os.open(job / ALIVE_FILE, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def ahead_of(job: Path, folder: Folder) -> list[str]:
    """Ids of the living jobs that are measured or wait in front of `job`."""
    mine = _place(job)
    return [
        other.name
        for other in sorted(folder.jobs.glob("*"))
        if other != job and _is_waiting_or_running(other) and _place(other) < mine
    ]


def turn(
    job: Path,
    folder: Folder,
    *,
    limit_s: float,
    on_wait: Callable[[int], None],
    clock_s: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> int | None:
    """A handle that holds the board for `job` once it is its turn; None when that took longer than `limit_s`.

    Args:
        on_wait: Called with the number of jobs ahead, each time that it looks.
    """
    start = clock_s()
    while True:
        ahead = ahead_of(job, folder)
        if not ahead:
            handle = taken(folder.root / "board.lock")
            if handle is not None:
                return handle
        if clock_s() - start >= limit_s:
            return None
        on_wait(max(1, len(ahead)))
        sleep(POLL_S)


def _is_waiting_or_running(job: Path) -> bool:
    status = read_json(job / STATUS_FILE) or {}
    return status.get("state") in ("queued", "running") and is_alive(job)


def _place(job: Path) -> tuple[int, str]:
    """Order of arrival by the board's clock; the id decides between equals."""
    status = read_json(job / STATUS_FILE) or {}
    return int(status.get("submitted_ns", 0)), job.name
