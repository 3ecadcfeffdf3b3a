"""Runs a builder as a process of its own: followed line by line, ended with all that it started when time is up.

Standard library of Python 3.10 only.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

LOOK_S = 0.5
"""A request to stop is noticed this soon."""
KEPT_BYTES = 4 << 20
"""Of the output; a verbose builder's beginning goes first."""


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        code: Its exit code, negative for a signal.
        output: What it wrote, both streams in the order of writing; the last `KEPT_BYTES`.
        timed_out: It was ended because time was up.
        stopped: It was ended because somebody asked for it.
        seconds: How long it took.
    """

    code: int
    output: str
    timed_out: bool
    stopped: bool
    seconds: float

    @property
    def death(self) -> str:
        """What happened in a clause, for an end that nobody asked for."""
        if self.code >= 0:
            return f"ended with exit code {self.code}"
        known = -self.code in {int(member) for member in signal.Signals}
        name = signal.Signals(-self.code).name if known else f"signal {-self.code}"
        return f"was killed ({name}), as when memory ends" if name == "SIGKILL" else f"crashed with {name}"


def run_to_end(
    command: Sequence[str],
    *,
    limit_s: float,
    on_line: Callable[[str], None] = lambda line: None,
    stop: Callable[[], bool] = lambda: False,
    environment: Mapping[str, str] | None = None,
    clock_s: Callable[[], float] = time.monotonic,
) -> Ended:
    """How a command ended; nothing of it is left when this returns.

    Args:
        command: Program and arguments.
        limit_s: Seconds after which it is killed.
        on_line: Called with each line of its output.
        stop: Asked now and then whether to end it.
        environment: Added to this process's own.
        clock_s: Monotonic seconds.

    Raises:
        OSError: The program cannot be started.
    """
    began = clock_s()
    process = subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, **(environment or {})},
    )
    assert process.stdout is not None
    reader = _Lines(process.stdout.fileno(), on_line)
    timed_out = stopped = False
    try:
        with selectors.DefaultSelector() as waiting:
            waiting.register(process.stdout, selectors.EVENT_READ)
            while not reader.ended and not (timed_out or stopped):
                if waiting.select(LOOK_S):
                    reader.read()
                elif process.poll() is not None:
                    break  # a child that it left behind may still hold the pipe
                timed_out, stopped = clock_s() - began > limit_s, stop()
            while not (timed_out or stopped) and process.poll() is None:
                time.sleep(0.01)
                timed_out, stopped = clock_s() - began > limit_s, stop()
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    return Ended(process.returncode, reader.text, timed_out, stopped, clock_s() - began)


class _Lines:
    """Reads a pipe, keeps its end and passes whole lines on."""

    def __init__(self, handle: int, on_line: Callable[[str], None]) -> None:
        self._handle, self._on_line = handle, on_line
        self._kept, self._open = b"", b""
        self.ended = False

    @property
    def text(self) -> str:
        return self._kept.decode(errors="replace")

    def read(self) -> None:
        data = os.read(self._handle, 1 << 16)
        self.ended = not data
        self._kept = (self._kept + data)[-KEPT_BYTES:]
        *lines, self._open = (self._open + data).split(b"\n")
        for line in lines:
            self._on_line(line.decode(errors="replace"))
