"""Workers end with the process that started them, whatever ended it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PARENT = """
import os, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from edgekd.core.orphan import end_with_parent

if __name__ == "__main__":
    arguments = (end_with_parent, (os.getpid(),)) if sys.argv[1] == "bound" else (None, ())
    with ProcessPoolExecutor(1, get_context("spawn"), *arguments) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        time.sleep(60)
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")


def _alive(pid: int) -> bool:
    """Whether a process runs; a zombie that nobody has collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("binding", ["bound", "free"])
def test_a_pool_worker_that_waits_ends_with_its_killed_parent_only_if_it_is_bound_to_it(
    binding: str, tmp_path: Path
) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    parent = subprocess.Popen(
        [sys.executable, str(script), binding], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    try:
        assert _alive(worker)
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + (10 if binding == "bound" else 0.5)
        while _alive(worker) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert _alive(worker) == (binding == "free")
    finally:
        parent.stdout.close()
        if _alive(worker):
            os.kill(worker, signal.SIGKILL)
