"""The link to a JavaScript engine: a server on 127.0.0.1 that hands out tasks and takes answers, one at a time.

Node.js and a page in a browser speak to it alike. It serves the engine's program and the files of ONNX Runtime Web, all
below a random path that other processes of the machine do not know, with the headers that isolate a page from other
origins: without them a browser neither shares memory between threads nor shows a fine clock.
"""

from __future__ import annotations

import json
import queue
import secrets
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.errors import DeviceUnavailable, UserError
from edgekd.runtimes.session import FloatArray

HERE = Path(__file__).parent
PROGRAM = ("engine.mjs", "page.html")
LIMIT_S = 120.0
"""Longest time for a task beyond the time that it is told to take."""
_POLL_S = 20.0
_LOOK_S = 0.2
_TYPES = {".mjs": "text/javascript", ".wasm": "application/wasm", ".html": "text/html; charset=utf-8"}
_HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Link:
    """A running server for one engine; `close` ends it.

    Args:
        library: The folder with ONNX Runtime Web's files, its `dist`.
    """

    def __init__(self, library: Path) -> None:
        self.library = library
        self.path = f"/{secrets.token_urlsafe(16)}"
        self.tasks: queue.Queue[bytes] = queue.Queue()
        self.answers: queue.Queue[bytes] = queue.Queue()
        self.closed = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def address(self) -> str:
        """What the host is given: it asks for `ADDRESS/next`."""
        return f"http://127.0.0.1:{self._server.server_address[1]}{self.path}"

    def ask(
        self,
        task: str,
        head: Mapping[str, Any],
        body: bytes = b"",
        *,
        alive: Callable[[], str | None],
        limit_s: float = LIMIT_S,
    ) -> tuple[dict[str, Any], bytes]:
        """The engine's answer and the bytes of its tensors.

        Args:
            task: A method of `Engine` in engine.mjs.
            head: Plain data.
            body: Bytes that belong to it.
            alive: Asked while waiting: None as long as the host runs, else how it ended.
            limit_s: How long to wait.

        Raises:
            UserError: The engine refused, in its own words.
            DeviceUnavailable: The host is gone, or did not answer in time.
        """
        self.tasks.put(message({"do": task, **head}, body))
        end = time.monotonic() + limit_s
        while True:
            try:
                found, data = unpacked(self.answers.get(timeout=_LOOK_S))
                break
            except queue.Empty:
                ended = alive()
                if ended is not None:
                    raise DeviceUnavailable(f"The JavaScript engine is gone during '{task}': {ended}") from None
                if time.monotonic() > end:
                    raise DeviceUnavailable(
                        f"The JavaScript engine did not answer to '{task}' within {limit_s:.0f} s."
                    ) from None
        if "error" in found:
            raise UserError(f"ONNX Runtime Web: {found['error']}")
        return found, data

    def stop(self) -> None:
        """Tells the host to end; does not wait for it."""
        self.tasks.put(message({"do": "stop"}))

    def close(self) -> None:
        """Ends the server. A host that still asks is refused."""
        self.closed = True
        self._server.shutdown()
        self._server.server_close()

    def file(self, name: str) -> Path | None:
        """The file that is served under a name below the path; None for any other name."""
        if name in PROGRAM:
            return HERE / name
        folder, _, inner = name.partition("/")
        if folder == "ort" and inner.startswith("ort") and inner == Path(inner).name:
            found = self.library / inner
            return found if found.is_file() else None
        return None


def message(head: Mapping[str, Any], body: bytes = b"") -> bytes:
    """Its size, the head as JSON, and the bytes; what engine.mjs unpacks."""
    text = json.dumps(head).encode()
    return struct.pack("<I", len(text)) + text + body


def unpacked(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Head and bytes of a message."""
    (size,) = struct.unpack_from("<I", data)
    head: dict[str, Any] = json.loads(data[4 : 4 + size])
    return head, data[4 + size :]


def tensors_out(feeds: Mapping[str, FloatArray]) -> tuple[list[dict[str, Any]], bytes]:
    """Names and shapes of arrays, and their bytes in that order."""
    described = [{"name": name, "dims": list(value.shape)} for name, value in feeds.items()]
    return described, b"".join(np.ascontiguousarray(value, dtype="<f4").tobytes() for value in feeds.values())


def tensors_in(described: Sequence[Mapping[str, Any]], data: bytes) -> dict[str, FloatArray]:
    """Arrays of the engine's answer, float32, which the caller owns."""
    found, at = {}, 0
    for entry in described:
        shape = tuple(int(size) for size in entry["dims"])
        count = int(np.prod(shape, dtype=np.int64))
        found[str(entry["name"])] = np.frombuffer(data, "<f4", count, at).reshape(shape).copy()
        at += 4 * count
    return found


def _handler(link: Link) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            name = self._name()
            if name == "next":
                return self._next()
            path = None if name is None else link.file(name)
            if path is None:
                return self._send(404, b"", "text/plain")
            return self._send(200, path.read_bytes(), _TYPES[path.suffix])

        def do_POST(self) -> None:
            if self._name() != "answer":
                return self._send(404, b"", "text/plain")
            link.answers.put(self.rfile.read(int(self.headers["Content-Length"])))
            return self._send(204, b"", "text/plain")

        def _next(self) -> None:
            """The next task; nothing after a while, so that a host whose server is gone finds out."""
            end = time.monotonic() + _POLL_S
            while time.monotonic() < end and not link.closed:
                try:
                    task = link.tasks.get(timeout=_LOOK_S)
                except queue.Empty:
                    continue
                return self._send(200, task, "application/octet-stream")
            return self._send(204, b"", "text/plain")

        def _name(self) -> str | None:
            path, _, name = self.path.removeprefix("/").partition("/")
            return name if secrets.compare_digest(f"/{path}", link.path) else None

        def _send(self, status: int, data: bytes, kind: str) -> None:
            self.send_response(status)
            for key, value in _HEADERS.items():
                self.send_header(key, value)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            return

    return Handler
