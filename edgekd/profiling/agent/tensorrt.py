"""TensorRT on the board: opens an engine that was built for it, or builds one from an ONNX graph and keeps it.

The twin of `edgekd/runtimes/tensorrt.py` and `edgekd/export/tensorrt.py` for a board without PyTorch: it uses the names
that every TensorRT from 8.6 to 11 has, and asks before using any other. Not run on hardware yet. Standard library of
Python 3.10, and TensorRT inside functions.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import struct
import time
from array import array
from pathlib import Path
from typing import Any

from edgekd.profiling.agent.cuda import Cuda
from edgekd.profiling.agent.engines import NOT_LOADED, input_shape, input_values
from edgekd.profiling.agent.wire import AgentError, agent_error

VERBOSITY = "DETAILED"
"""How much an engine knows of its layers; it changes what the inspector says, not what runs."""
_BYTES = {"FLOAT": 4, "HALF": 2, "INT8": 1, "UINT8": 1, "BOOL": 1, "INT32": 4, "INT64": 8}


class TensorRtEngine:
    """An execution context, device memory and one stream; see `Engine` for the contract."""

    def __init__(self, trt: Any, engine: Any, spec: dict[str, Any], cuda: Cuda, facts: dict[str, Any]) -> None:
        self._engine, self._cuda, self._facts = engine, cuda, facts
        began = time.perf_counter()
        self._context = engine.create_execution_context()
        facts["load_ms"] += (time.perf_counter() - began) * 1e3
        if self._context is None:
            raise AgentError(NOT_LOADED, "TensorRT could not create an execution context; memory is probably short")
        shapes = {entry["name"]: input_shape(entry, int(spec["batch"])) for entry in spec["inputs"]}
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self._inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self._outputs = [name for name in names if name not in self._inputs]
        self._trt, self._events = trt, (cuda.event(), cuda.event())
        self._host: dict[str, Any] = {}
        self._device: dict[str, int] = {}
        for number, name in enumerate(self._inputs):
            if not self._context.set_input_shape(name, tuple(shapes[name])):
                raise AgentError(NOT_LOADED, f"the engine takes no input {name!r} of shape {shapes[name]}")
            values = input_values(shapes[name], number)
            self._place(name, _bytes_of(values, self._type(name)))
        for name in self._outputs:
            size = _BYTES[self._type(name)]
            for axis in self._context.get_tensor_shape(name):
                size *= int(axis)
            self._place(name, bytes(size))

    def run(self) -> None:
        self._copy_in()
        self._execute()
        for name in self._outputs:
            self._cuda.to_host(self._host[name], self._device[name], len(self._host[name]))
        self._cuda.wait()

    def device_ns(self, calls: int) -> list[int]:
        first, second = self._events
        found = []
        for _ in range(calls):
            self._copy_in()
            self._cuda.record(first)
            self._execute()
            self._cuda.record(second)
            self._cuda.wait()
            found.append(self._cuda.elapsed_ns(first, second))
        return found

    def layers(self, calls: int) -> dict[str, Any]:
        listener = _listener(self._trt)
        inspector = self._engine.create_engine_inspector()
        if hasattr(inspector, "execution_context"):
            inspector.execution_context = self._context  # with it, formats of free axes are told too
        information = inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)
        # Reported after the execution and not within it, as trtexec does it.
        self._context.enqueue_emits_profile = False
        self._context.profiler = listener
        for _ in range(calls):
            self._copy_in()
            self._execute()
            self._cuda.wait()
            if not self._context.report_to_profiler():
                raise RuntimeError("TensorRT did not report the times of the layers")
        return {"information": json.loads(information), "times_ms": listener.times_ms, "calls": calls}

    def outputs(self) -> list[list[float]]:
        return [_values_of(bytes(self._host[name]), self._type(name)) for name in self._outputs]

    def facts(self) -> dict[str, Any]:
        return dict(self._facts)

    def close(self) -> None:
        self._context = None  # before its engine
        self._engine = None
        for place in self._device.values():
            self._cuda.free(place)

    def _copy_in(self) -> None:
        for name in self._inputs:
            self._cuda.to_device(self._device[name], self._host[name], len(self._host[name]))

    def _execute(self) -> None:
        if not self._context.execute_async_v3(self._cuda.stream.value):
            raise RuntimeError("TensorRT reported that the execution failed; its log names the reason")

    def _type(self, name: str) -> str:
        found = str(self._engine.get_tensor_dtype(name).name)
        if found not in _BYTES:
            raise AgentError(NOT_LOADED, f"the engine's tensor {name!r} has the type {found}, which is not supported")
        return found

    def _place(self, name: str, content: bytes) -> None:
        self._host[name] = (ctypes.c_char * len(content)).from_buffer_copy(content)
        self._device[name] = self._cuda.allocate(len(content))
        self._context.set_tensor_address(name, self._device[name])


def _listener(trt: Any) -> Any:
    """An object that TensorRT tells the time of each layer; `times_ms` holds them by the layer's name."""

    class Listener(trt.IProfiler):  # type: ignore[misc]  # the base is known on the board only
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.times_ms: dict[str, list[float]] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times_ms.setdefault(layer_name, []).append(ms)

    return Listener()


def opened(spec: dict[str, Any], path: Path, cache: Path) -> TensorRtEngine:
    """An engine on an engine file, or built from an ONNX file; a built one is kept under what it depends on.

    Raises:
        AgentError: The file does not load or build, or the engine is for another device.
        ImportError: TensorRT is not installed.
        OSError: A native library is missing, or there is no CUDA device.
    """
    import tensorrt as trt

    cuda = Cuda()
    major, minor, name = cuda.device()
    here = f"tensorrt-{trt.__version__}/sm_{major}{minor}/{name}"
    logger = trt.Logger(trt.Logger.ERROR)
    if spec["kind"] == "engine":
        if spec.get("bound_to") not in (None, here):
            raise AgentError(
                NOT_LOADED,
                f"the engine was built for {spec['bound_to']}, but the board is {here}",
                "profile the ONNX bundle: its engine is then built on the board",
            )
        content = path.read_bytes()
    else:
        content = _built(trt, logger, spec, path, cache, here)
    began = time.perf_counter()
    engine = trt.Runtime(logger).deserialize_cuda_engine(content)
    if engine is None:
        raise AgentError(
            NOT_LOADED,
            f"TensorRT {trt.__version__} on the board cannot read the engine: damaged, or of another version",
            "profile the ONNX bundle: its engine is then built on the board",
        )
    return TensorRtEngine(
        trt,
        engine,
        spec,
        cuda,
        {
            "runtime": "tensorrt",
            "version": trt.__version__,
            "provider": name,
            "threads": 1,
            "cuda_graph": False,
            "load_ms": (time.perf_counter() - began) * 1e3,
            "engine": here,
        },
    )


def _built(trt: Any, logger: Any, spec: dict[str, Any], path: Path, cache: Path, here: str) -> bytes:
    """The engine's bytes, from the cache or built now."""
    key = "\n".join([str(spec["file"]), here, str(spec["precision"]), str(spec["batch"]), VERBOSITY])
    place = cache / f"{hashlib.sha256(key.encode()).hexdigest()}.engine"
    if place.is_file():
        os.utime(place)
        return place.read_bytes()
    content = _build(trt, logger, spec, path)
    made = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        made.write_bytes(content)
        os.replace(made, place)
    except OSError as err:
        made.unlink(missing_ok=True)
        raise agent_error(err, place) from err
    return content


def _build(trt: Any, logger: Any, spec: dict[str, Any], path: Path) -> bytes:
    builder = trt.Builder(logger)
    explicit = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
    network = builder.create_network(0 if explicit is None else 1 << int(explicit))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(path.read_bytes()):
        reason = parser.get_error(0) if parser.num_errors else "no reason given"
        raise AgentError(NOT_LOADED, f"TensorRT {trt.__version__} on the board cannot parse the graph: {reason}")
    config = builder.create_builder_config()
    # Permissions up to TensorRT 10; from 11 on the graph alone decides and the flags are gone.
    for flag in {"fp16": ("FP16",), "int8": ("INT8", "FP16")}.get(str(spec["precision"]), ()):
        if hasattr(trt.BuilderFlag, flag):
            config.set_flag(getattr(trt.BuilderFlag, flag))
    config.profiling_verbosity = getattr(trt.ProfilingVerbosity, VERBOSITY)
    profile = builder.create_optimization_profile()
    for entry in spec["inputs"]:
        shape = tuple(input_shape(entry, int(spec["batch"])))
        profile.set_shape(entry["name"], shape, shape, shape)
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise AgentError(NOT_LOADED, f"TensorRT {trt.__version__} on the board could not build the engine")
    return bytes(engine)


def _bytes_of(values: array[float], kind: str) -> bytes:
    if kind == "FLOAT":
        return values.tobytes()
    if kind == "HALF":
        return struct.pack(f"{len(values)}e", *values)
    return bytes(_BYTES[kind] * len(values))


def _values_of(content: bytes, kind: str) -> list[float]:
    code = {"FLOAT": "f", "HALF": "e", "INT8": "b", "UINT8": "B", "BOOL": "?", "INT32": "i", "INT64": "q"}[kind]
    return [float(value) for value in struct.unpack(f"{len(content) // _BYTES[kind]}{code}", content)]
