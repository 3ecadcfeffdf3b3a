"""Builders of students that end the process that scores them, for recipes `module:tests.search.fatal:...`."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from torch import nn

from edgekd.testing.toys import toy_cnn


def killer() -> nn.Module:
    """As the kernel ends a process when memory is full."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def killer_once(marker: str) -> nn.Module:
    """Ends the process unless the file `marker` exists, and leaves it behind."""
    if not Path(marker).exists():
        Path(marker).touch()
        killer()
    return toy_cnn()


def crasher() -> nn.Module:
    """As a library that reads where it must not."""
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError("unreachable")


def broken() -> nn.Module:
    """A mistake in the user's code."""
    raise KeyError("no such layer")


def sleeper(started: str, seconds: float) -> nn.Module:
    """Writes its process id as a line of the file `started`, and takes its time."""
    with open(started, "a", encoding="utf-8") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(seconds)
    return toy_cnn()
