"""TensorRT on the board: opens an engine that was built for it, or builds one from an ONNX graph and keeps it.

The twin of `edgekd/runtimes/tensorrt.py` for a board without PyTorch. What builds and runs engines is shared with the
rest of edgekd (`edgekd/runtimes/engines/`). Not run on hardware yet. Standard library of Python 3.10, and TensorRT
inside functions.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekd.profiling.agent.engines import NOT_LOADED, input_shape, input_values
from edgekd.profiling.agent.wire import AgentError, agent_error
from edgekd.runtimes.engines.cuda import Cuda
from edgekd.runtimes.engines.device import device_here
from edgekd.runtimes.engines.settings import BuildSettings, InputShapes, SettingsError, version_from_text
from edgekd.runtimes.engines.tensorrt_api import ApiError, build
from edgekd.runtimes.engines.tensorrt_run import DeviceEngine, EngineError, deserialized
from edgekd.runtimes.fingerprint import (
    Device,
    Fingerprint,
    FingerprintError,
    fingerprint_from_plain,
    require_own_engine,
)

BUILD_AGAIN = "profile the ONNX bundle: its engine is then built on the board"
Feeds = Mapping[str, tuple[Sequence[int], "array[float]"]]


class TensorRtEngine(DeviceEngine):
    """A `DeviceEngine` that keeps to the contract of `Engine`."""

    def __init__(self, trt: Any, engine: Any, feeds: Feeds, cuda: Cuda, facts: dict[str, Any]) -> None:
        try:
            super().__init__(trt, engine, cuda, feeds)
        except EngineError as err:
            raise AgentError(NOT_LOADED, str(err)) from err
        self._facts = {**facts, "load_ms": facts["load_ms"] + self.context_ms}

    def facts(self) -> dict[str, Any]:
        return dict(self._facts)


def opened(spec: dict[str, Any], paths: Sequence[Path], cache: Path) -> TensorRtEngine:
    """An engine on an engine file, or built from an ONNX file; a built one is kept under what it depends on.

    Raises:
        AgentError: The file does not load or build, or the engine is not ours or for another device.
        ImportError: TensorRT is not installed.
        OSError: A native library is missing, or there is no CUDA device.
    """
    import tensorrt as trt

    (path,) = paths
    cuda = Cuda()
    here = device_here(trt.__version__, cuda=cuda)
    name = f"tensorrt-{here.tensorrt}/sm_{here.compute_capability.replace('.', '')}/{here.gpu}"
    host_code = False
    if spec["kind"] == "engine":
        host_code = require_engine_for(here, spec.get("fingerprint"), path).version_compatible
        content = path.read_bytes()
    else:
        content = _built(trt, spec, path, cache, name)
    began = time.perf_counter()
    try:
        _, engine = deserialized(content, host_code=host_code)
    except EngineError as err:
        raise AgentError(NOT_LOADED, f"on the board {err}", BUILD_AGAIN) from err
    facts = {
        "runtime": "tensorrt",
        "version": trt.__version__,
        "provider": here.gpu,
        "threads": 1,
        "cuda_graph": False,
        "load_ms": (time.perf_counter() - began) * 1e3,
        "engine": name,
    }
    shapes = {entry["name"]: input_shape(entry, int(spec["batch"])) for entry in spec["inputs"]}
    feeds = {name: (shape, input_values(shape, number)) for number, (name, shape) in enumerate(shapes.items())}
    return TensorRtEngine(trt, engine, feeds, cuda, facts)


def require_engine_for(here: Device, fingerprint: object, path: Path) -> Fingerprint:
    """The fingerprint of an engine that edgekd built, that is unaltered, and that fits the board.

    Raises:
        AgentError: The reason; the file was not given to TensorRT.
    """
    if fingerprint is None:
        raise AgentError(
            NOT_LOADED,
            "the engine has no fingerprint of edgekd; engines are native code, and one of unknown origin is not loaded",
            BUILD_AGAIN,
        )
    try:
        found = fingerprint_from_plain(fingerprint, "the engine's fingerprint")
        require_own_engine(found, path)
    except FingerprintError as err:
        raise AgentError(NOT_LOADED, str(err), BUILD_AGAIN) from err
    reasons = found.fits(here)
    if reasons:
        raise AgentError(NOT_LOADED, f"the engine does not fit the board: {'; '.join(reasons)}", BUILD_AGAIN)
    return found


def _built(trt: Any, spec: dict[str, Any], path: Path, cache: Path, here: str) -> bytes:
    """The engine's bytes, from the cache or built now."""
    shapes = [(entry["name"], tuple(input_shape(entry, int(spec["batch"])))) for entry in spec["inputs"]]
    settings = BuildSettings(
        inputs=tuple(InputShapes(name, shape, shape, shape) for name, shape in shapes),
        precision=str(spec["precision"]),
        float16_scales=bool(spec.get("float16_scales")),
    )
    key = "\n".join([str(spec["files"][0]), here, json.dumps(settings.plain(), sort_keys=True)])
    place = cache / f"{hashlib.sha256(key.encode()).hexdigest()}.engine"
    if place.is_file():
        os.utime(place)
        return place.read_bytes()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise agent_error(err, place) from err
    try:
        build(
            settings, version_from_text(trt.__version__), onnx=path, engine=place, timing_cache=None, layers=None,
            on_progress=lambda phase, done, total: None,
        )  # fmt: skip
    except (ApiError, SettingsError) as err:
        raise AgentError(NOT_LOADED, f"TensorRT {trt.__version__} on the board cannot build the engine: {err}") from err
    except OSError as err:
        raise agent_error(err, place) from err
    return place.read_bytes()
