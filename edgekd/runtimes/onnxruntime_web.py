"""ONNX Runtime Web, WebAssembly on the CPU: in Node.js and in a browser without a window.

The engine runs in a process of its own and is timed there, by its own clock. What a figure holds is stated in
`environment()`: the host and its version, the threads that really ran, and the step of its clock. It is the latency of
this machine's browser: a phone's is another one.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self, TypeAlias

from pydantic import JsonValue

from edgekd.core.blobs import Blobs
from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.errors import DeviceUnavailable, UserError
from edgekd.runtimes.addons import ADDONS, ONNXRUNTIME_WEB
from edgekd.runtimes.refused import refusal
from edgekd.runtimes.session import Availability, FloatArray, Runtime, checked_feeds
from edgekd.runtimes.web.engine import JsEngine, engine_for
from edgekd.runtimes.web.host import BROWSER_VARIABLE, NODE_MAJOR, HostName, program_of
from edgekd.runtimes.web.link import tensors_in, tensors_out

Shapes: TypeAlias = dict[str, tuple[int | str, ...]]
REGION = (
    "one session.run() in JavaScript, by the host's own clock: copying the input into WebAssembly's memory, running, "
    "copying the logits out; preprocessing, opening and the way between the processes are not in it"
)


class WebSession:
    """A graph in a JavaScript host; see `Session` for the contract, and `OwnClock` for what it adds.

    Sessions of one runtime and thread count in one process share their host: starting one takes seconds.
    """

    def __init__(self, runtime: str, engine: JsEngine, opened: Mapping[str, Any], shapes: Shapes) -> None:
        self._runtime, self._engine, self._opened, self._shapes = runtime, engine, opened, shapes

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(self._shapes)

    @property
    def load_ms(self) -> float:
        return float(self._opened["load_ms"])

    def infer(self, feeds: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        checked_feeds(feeds, self._shapes)
        described, data = tensors_out(feeds)
        found, answer = self._ask("infer", {"inputs": described}, data)
        return tensors_in(found["outputs"], answer)

    def timer(self, feeds: Mapping[str, FloatArray]) -> WebTimer:
        checked_feeds(feeds, self._shapes)
        described, data = tensors_out(feeds)
        self._ask("bind", {"inputs": described}, data)
        return WebTimer(self)

    def memory_peak_mib(self) -> float | None:
        return self._engine.memory_peak_mib()

    def environment(self) -> dict[str, JsonValue]:
        facts = self._engine.facts
        return {
            "runtime": self._runtime,
            "version": str(self._opened["version"]),
            "provider": "wasm (SIMD)",
            "threads": self._opened["threads"],
            "host": str(facts["host"]),
            "cross_origin_isolated": bool(facts["isolated"]),
            "clock_step_us": round(float(facts["clock_step_us"]), 3),
            "graph_optimization": "all",
            "timed_region": REGION,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.release(self._opened["session"])

    def asked(self, task: str, head: Mapping[str, Any], takes_s: float = 0.0) -> dict[str, Any]:
        """The answer to a task without tensors."""
        return self._ask(task, head, takes_s=takes_s)[0]

    def _ask(
        self, task: str, head: Mapping[str, Any], body: bytes = b"", *, takes_s: float = 0.0
    ) -> tuple[dict[str, Any], bytes]:
        return self._engine.ask(task, {"session": self._opened["session"], **head}, body, takes_s=takes_s)


class WebTimer:
    """Timed calls that the host makes by itself."""

    def __init__(self, session: WebSession) -> None:
        self._session = session

    def warm_up(self, seconds: float) -> tuple[int, int]:
        found = self._session.asked("warm_up", {"seconds": seconds}, takes_s=seconds)
        return int(found["calls"]), int(found["fastest_ns"])

    def turn(self, calls: int) -> list[int]:
        return [int(ns) for ns in self._session.asked("turn", {"calls": calls})["ns"]]


class OnnxRuntimeWeb(Runtime):
    """ONNX Runtime Web in one kind of host."""

    accepts: ClassVar[frozenset[BundleKind]] = frozenset({BundleKind.ONNX})
    model_file: ClassVar[str] = "model.onnx"
    host: ClassVar[HostName]

    def availability(self) -> Availability:
        part, program = ADDONS[ONNXRUNTIME_WEB], program_of(self.host)
        if program is None:
            need = f"Node.js {NODE_MAJOR} or newer" if self.host == "node" else "Chromium or Chrome"
            how = "" if self.host == "node" else f"; {BROWSER_VARIABLE} names one that is not on the PATH"
            return Availability(ok=False, reason=f"{need} is not on the PATH", install=f"install {need}{how}")
        major = node_major(program) if self.host == "node" else NODE_MAJOR
        if major < NODE_MAJOR:
            why = f"{program} is Node.js {major}, and {NODE_MAJOR} is the first one that works"
            return Availability(ok=False, reason=why, install=f"install Node.js {NODE_MAJOR} or newer")
        if not part.installed:
            return Availability(ok=False, reason=f"{ONNXRUNTIME_WEB} is not in {part.folder}", install=part.hint)
        return Availability(ok=True, version=_version(_library()))

    def open(self, path: Path, *, threads: int | None = None, batch: int | None = None) -> WebSession:
        return self._session(path, threads=threads, batch=batch, folds_weights=False)

    def open_bundle(
        self, bundle: ModelBundle, blobs: Blobs, *, threads: int | None = None, batch: int | None = None
    ) -> WebSession:
        # What the bundle tells need not be read from the file: that takes onnx, which a measuring worker does without.
        inputs = {spec.name: spec.shape for spec in bundle.inputs}
        known = inputs if all("?" not in shape for shape in inputs.values()) else None
        return self._session(
            blobs.path(bundle.file(self.model_file)),
            threads=threads,
            batch=batch,
            folds_weights=bundle.tags.get("scheme") == "weight-only",
            inputs=known,
        )

    def _session(
        self,
        path: Path,
        *,
        threads: int | None,
        batch: int | None,
        folds_weights: bool,
        inputs: Shapes | None = None,
    ) -> WebSession:
        found, program = self.availability(), program_of(self.host)
        if not found.ok or program is None:
            raise DeviceUnavailable(f"The runtime {self.name!r} cannot work here: {found.reason}.", hint=found.install)
        given = inputs if inputs is not None else _inputs_of_file(path)
        shapes = {name: _with_batch(shape, batch, name, path) for name, shape in given.items()}
        axes = {str(s[0]): batch for s in given.values() if batch is not None and s and isinstance(s[0], str)}
        engine = engine_for(self.host, program, _library(), threads or 1)
        try:
            opened = engine.open(path.read_bytes(), axes, folds_weights=folds_weights)
        except UserError as err:
            raise refusal(f"{self.name} {found.version}", err.message, path, runtime=self.name) from err
        return WebSession(self.name, engine, opened, shapes)


class OnnxRuntimeWebInNode(OnnxRuntimeWeb):
    """Server-side JavaScript, and the nearest thing to a browser where none is installed."""

    name: ClassVar[str] = "ort-web-node"
    host: ClassVar[HostName] = "node"


class OnnxRuntimeWebInBrowser(OnnxRuntimeWeb):
    """A page in Chromium without a window."""

    name: ClassVar[str] = "ort-web-browser"
    host: ClassVar[HostName] = "browser"


NODE = OnnxRuntimeWebInNode()
BROWSER = OnnxRuntimeWebInBrowser()


@functools.cache
def node_major(program: str) -> int:
    """The major version that `node --version` says; 0 when it says none."""
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    found = re.match(r"v(\d+)\.", said.strip())
    return int(found[1]) if found else 0


def _inputs_of_file(path: Path) -> Shapes:
    from edgekd.runtimes.onnx_file import onnx_interface

    return {spec.name: spec.shape for spec in onnx_interface(path)[0]}


def _library() -> Path:
    return ADDONS[ONNXRUNTIME_WEB].folder / "node_modules" / ONNXRUNTIME_WEB / "dist"


def _version(library: Path) -> str:
    try:
        return str(json.loads((library.parent / "package.json").read_text())["version"])
    except (OSError, ValueError, KeyError):
        return "unknown"


def _with_batch(shape: tuple[int | str, ...], batch: int | None, name: str, path: Path) -> tuple[int | str, ...]:
    """The input's shape with its batch fixed."""
    if batch is None or not shape or shape[0] == batch:
        return shape
    if isinstance(shape[0], str) and shape[0] != "?":
        return (batch, *shape[1:])
    raise UserError(
        f"{path}: the input {name!r} has the shape {list(shape)}, so its batch cannot be fixed to {batch}.",
        hint="a batch can be fixed when the first axis is dynamic and has a name",
    )
