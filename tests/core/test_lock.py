from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from edgekd.core.lock import StoreLock
from edgekd.errors import UserError

HOLD = """
import sys, time
from pathlib import Path
from edgekd.core.lock import StoreLock
with StoreLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def hold_elsewhere(root: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(root)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_told_who_holds_the_store_and_a_kill_frees_it(root: Path) -> None:
    process = hold_elsewhere(root)
    try:
        with pytest.raises(UserError) as caught, StoreLock(root):
            pass
        assert f"The store {root} is in use by process {process.pid} on " in caught.value.message
        assert "started 20" in caught.value.message
        assert "--store" in str(caught.value.hint)
        holder = StoreLock(root).holder()
        assert holder is not None
        assert holder.pid == process.pid
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert StoreLock(root).holder() is None
    with StoreLock(root) as mine:
        assert mine.pid == os.getpid()


def test_the_lock_is_free_after_an_error(root: Path) -> None:
    with pytest.raises(ZeroDivisionError), StoreLock(root):
        _ = 1 / 0
    assert StoreLock(root).holder() is None


def test_a_run_waits_a_moment_for_someone_who_only_looks(root: Path) -> None:
    with StoreLock(root):
        pass
    looking = os.open(root / "lock", os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    threading.Timer(0.1, os.close, [looking]).start()
    with StoreLock(root) as mine:
        assert StoreLock(root).holder() == mine


def test_asking_who_holds_it_never_keeps_a_run_from_starting(root: Path) -> None:
    with StoreLock(root):
        pass
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            StoreLock(root).holder()

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for _ in range(100):
            with StoreLock(root) as mine:
                held = StoreLock(root).holder()
                assert held is None or held == mine
    finally:
        stop.set()
        asking.join()


def test_a_lock_whose_text_is_not_written_yet_is_still_a_lock(root: Path) -> None:
    with StoreLock(root):
        (root / "lock").write_text("")
        assert StoreLock(root).holder() is None
        began = time.monotonic()
        with pytest.raises(UserError, match="in use by another process"), StoreLock(root):
            pass
        assert time.monotonic() - began < 5
