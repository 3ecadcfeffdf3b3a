"""A process that ends when the one that started it does, even if that one was killed and could tell nobody.

A worker that waits for its next task on a queue never learns of the death: the queue's other end is open in every
worker. Only the kernel knows. This is for processes that a single thread starts and owns: Linux counts the end of that
thread as the end of the parent.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int) -> None:
    """From here on Linux kills this process when its parent ends; elsewhere nothing happens.

    Args:
        parent: Process id of the one that started this process; if it is gone already, this process ends at once.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was gone before we asked
            os._exit(1)


def ending_with_this() -> Callable[[], object] | None:
    """For `preexec_fn`: Linux kills the program when the thread that starts it ends, however it ends; else None."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up here: a child of a process with threads may do little
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
