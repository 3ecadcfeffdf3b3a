"""Engines in processes of their own, seen from the coordinator: started, asked with a time limit, buried with a reason.

`WorkerTimer` is a `Timer` of the measuring loop. Only the worker whose turn it is runs; the others wait for their next
request without using the processor. What it cannot know is why native code died: it passes on the signal and the last
words on standard error.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import edgekd
from edgekd.errors import BuildFailed, DeviceUnavailable, EdgekdError, UserError
from edgekd.profiling.agent.loop import TurnFailed

COMMAND = (sys.executable, "-P", "-m", "edgekd.profiling.worker")  # -P: no module of the user's folder is taken
LIMIT_S = 120.0
"""Longest time for one request beyond the time that it is told to take."""
_LAST_WORDS = 300
_DYING_S = 10.0
_LEAVING_S = 5.0
_STACK = ("  File ", "Current thread", "Thread ", "Extension modules", "<no Python frame>", "  <no Python")


class WorkerLost(DeviceUnavailable):
    """A worker crashed or hung: it is gone, and what it measured is not kept."""


class WorkerProcess:
    """A running worker. A context manager: at the end of its block the process is gone, whatever state it was in.

    Args:
        label: The engine, for messages.
        runtime: What it runs, for messages.
        limit_s: Time for one request beyond what it is told to take.
        command: What to start, followed by the id of this process; tests put a misbehaving program here.
    """

    def __init__(self, label: str, runtime: str, *, limit_s: float = LIMIT_S, command: Sequence[str] = COMMAND) -> None:
        self.label, self.runtime, self._limit_s = label, runtime, limit_s
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self._process = subprocess.Popen(
            [*command, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": _python_path()},
        )
        self._held = b""

    def ask(self, do: str, arguments: Mapping[str, Any] | None = None, *, takes_s: float = 0.0) -> Any:
        """The worker's answer.

        Args:
            do: The request, a method of `edgekd.profiling.worker.Worker`.
            arguments: Plain data.
            takes_s: How long it is told to take.

        Raises:
            EdgekdError: What the worker refused, with its hint.
            WorkerLost: It crashed, or did not answer in time and was killed.
        """
        try:
            self._stdin.write((json.dumps({"do": do, **(arguments or {})}) + "\n").encode())
            self._stdin.flush()
        except OSError:
            raise self._lost(do) from None
        answer = json.loads(self._line(do, time.monotonic() + takes_s + self._limit_s))
        if "error" in answer:
            kind = BuildFailed if answer.get("build_failed") else UserError
            raise kind(answer["error"], hint=answer["hint"])
        return answer["ok"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        _close(self._process.stdin)  # the end of its requests: it leaves by itself, with what it started
        try:
            self._process.wait(timeout=_LEAVING_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            if pipe is not None:
                _close(pipe)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def _stdin(self) -> Any:
        return self._process.stdin

    def _line(self, do: str, deadline: float) -> bytes:
        """One line of the worker's answers."""
        handle = self._process.stdout.fileno() if self._process.stdout else -1
        with selectors.DefaultSelector() as waiting:
            waiting.register(handle, selectors.EVENT_READ)
            while b"\n" not in self._held:
                if not waiting.select(max(0.0, deadline - time.monotonic())):
                    raise self._hung(do)
                data = os.read(handle, 1 << 16)
                if not data:
                    raise self._lost(do)
                self._held += data
        line, _, self._held = self._held.partition(b"\n")
        return line

    def _hung(self, do: str) -> WorkerLost:
        self._process.kill()
        return WorkerLost(
            f"{self.runtime} hung in native code: no answer to '{_words(do)}' within {self._limit_s:.0f} s "
            "(--time-limit). The process was killed; nothing of it is kept.",
            hint="give it more time with --time-limit, or leave this runtime out with --runtime",
        )

    def _lost(self, do: str) -> WorkerLost:
        try:
            code = self._process.wait(timeout=_DYING_S)
        except subprocess.TimeoutExpired:
            return self._hung(do)
        if code < 0:
            name = signal.Signals(-code).name
            how = (
                f"crashed in native code ({name})" if name != "SIGKILL" else "was killed (SIGKILL), as when memory ends"
            )
        else:
            how = f"ended with code {code}"
        words = self._last_words()
        said = f" Its last words: {words}" if words else ""
        return WorkerLost(
            f"{self.runtime} {how} during '{_words(do)}'; nothing of it is kept.{said}",
            hint="another version of the runtime may help; the others were measured without it",
        )

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").splitlines()
        told = [line.strip() for line in lines if line.strip() and not line.startswith(_STACK)]
        return " ".join(told[-3:])[-_LAST_WORDS:]


class WorkerTimer:
    """A `Timer` whose calls are made by a worker.

    Args:
        worker: With its engine open.
    """

    def __init__(self, worker: WorkerProcess) -> None:
        self._worker = worker

    def warm_up(self, seconds: float) -> tuple[int, int]:
        calls, fastest_ns = self._asked("warm_up", {"seconds": seconds}, takes_s=seconds)
        return calls, fastest_ns

    def turn(self, calls: int) -> list[int]:
        found: list[int] = self._asked("turn", {"calls": calls})
        return found

    def _asked(self, do: str, arguments: Mapping[str, Any], takes_s: float = 0.0) -> Any:
        try:
            return self._worker.ask(do, arguments, takes_s=takes_s)
        except EdgekdError as err:
            raise TurnFailed(err.message) from err


def _words(do: str) -> str:
    return {
        "open": "load the model",
        "warm_up": "warm up",
        "turn": "run the model",
        "answers": "answer the images",
        "energy": "measure the energy",
        "offline": "run all samples",
        "layers": "record the layers",
    }.get(do, do)


def _python_path() -> str:
    """The folder of this package first, so that the worker runs the same code."""
    here = str(Path(edgekd.__file__).parent.parent)
    return os.pathsep.join(path for path in (here, os.environ.get("PYTHONPATH", "")) if path)


def _close(pipe: Any) -> None:
    try:
        pipe.close()
    except OSError:  # a request that a dead worker never read
        return
