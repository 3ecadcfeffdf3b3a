"""JavaScript engines that run: one per kind of host and thread count in this process, shared by its sessions.

A host takes seconds to start and a hundred MiB, and WebAssembly fixes its threads at the start. Measurements stay
isolated all the same: each measured engine has a process of its own (`edgekd.profiling.isolated`), and with it a host.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgekd.errors import EdgekdError
from edgekd.runtimes.web.host import HostName, HostProcess
from edgekd.runtimes.web.link import LIMIT_S, Link

_lock = threading.RLock()
_running: dict[tuple[HostName, int, int], JsEngine] = {}
"""By host, threads of WebAssembly, and the thread that started it: a host dies with that thread."""


class JsEngine:
    """A host with its link, ended when its last session is released.

    Attributes:
        facts: What the host says of itself: `host`, `isolated`, `clock_step_us`.
    """

    def __init__(self, host: HostName, program: str, library: Path, threads: int) -> None:
        self._key, self._threads = _key(host, threads), threads
        self._link = Link(library)
        self._host = HostProcess(host, program, self._link.address, library)
        self._sessions: set[int] = set()
        self._numbers = 0
        self._before_mib: float | None = None
        self._peak_mib: float | None = None
        try:
            self.facts, _ = self.ask("hello", {})
        except BaseException:
            self._end()
            raise
        self._before_mib = self._peak_mib = self._host.memory_mib()

    @property
    def ended(self) -> bool:
        return self._host.ended() is not None

    def open(self, model: bytes, axes: Mapping[str, int], *, folds_weights: bool) -> dict[str, Any]:
        """What the host says of a loaded model: `session`, `load_ms`, `threads`, `version`.

        Args:
            model: The bytes of an ONNX file.
            axes: Sizes of dynamic axes by their names.
            folds_weights: Compute Q/DQ of constant weights once, at loading.

        Raises:
            UserError: It cannot be loaded, in the library's words.
            DeviceUnavailable: The host ended or did not answer.
        """
        with _lock:
            self._numbers += 1
            number = self._numbers
            self._sessions.add(number)
            try:
                head = {"threads": self._threads, "batch_axes": axes, "folds_weights": folds_weights}
                found, _ = self.ask("open", {"session": number, **head}, model)
            except BaseException:
                self._forget(number)
                raise
            return {"session": number, **found}

    def ask(
        self, task: str, head: Mapping[str, Any], body: bytes = b"", *, takes_s: float = 0.0
    ) -> tuple[dict[str, Any], bytes]:
        """The answer to a task; see `Link.ask`. What memory the host has taken is looked at afterwards."""
        with _lock:
            answer = self._link.ask(task, head, body, alive=self._host.ended, limit_s=LIMIT_S + takes_s)
            now = self._host.memory_mib() if task != "infer" else None
            if now is not None:
                self._peak_mib = max(self._peak_mib or 0.0, now)
            return answer

    def memory_peak_mib(self) -> float | None:
        """Most resident MiB seen between tasks, less what was resident before the first model."""
        return None if self._peak_mib is None or self._before_mib is None else self._peak_mib - self._before_mib

    def release(self, number: int) -> None:
        """Frees a session's model, and ends the host with its last session."""
        with _lock:
            if number not in self._sessions:
                return
            if len(self._sessions) > 1 and self._host.ended() is None:
                with suppress(EdgekdError):  # a host that cannot free a model is found out by the next task
                    self.ask("close", {"session": number})
            self._forget(number)

    def _forget(self, number: int) -> None:
        self._sessions.discard(number)
        if not self._sessions:
            _running.pop(self._key, None)
            self._end()

    def _end(self) -> None:
        self._link.stop()
        self._host.end()
        self._link.close()


def engine_for(host: HostName, program: str, library: Path, threads: int) -> JsEngine:
    """The running engine of this kind, started where there is none or where the last one has ended.

    Args:
        host: Which kind.
        program: Its path.
        library: The folder of ONNX Runtime Web, its `dist`.
        threads: Of WebAssembly.

    Raises:
        DeviceUnavailable: The host does not start.
    """
    with _lock:
        found = _running.get(_key(host, threads))
        if found is None or found.ended:
            found = JsEngine(host, program, library, threads)
            _running[_key(host, threads)] = found
        return found


def _key(host: HostName, threads: int) -> tuple[HostName, int, int]:
    return host, threads, threading.get_ident()
