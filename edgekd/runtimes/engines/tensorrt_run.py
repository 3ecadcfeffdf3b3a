"""An engine in device memory, fed and run through TensorRT's bindings and the CUDA runtime, without PyTorch.

Uses names that every TensorRT from 8.6 to 11 has and asks before using any other. It takes engines as bytes: whoever
opens one has checked its fingerprint before. Standard library of Python 3.10, and TensorRT in functions.
"""

from __future__ import annotations

import ctypes
import json
import struct
import time
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from edgekd.runtimes.engines.cuda import Cuda

BYTES_OF = {"FLOAT": 4, "HALF": 2, "INT8": 1, "UINT8": 1, "BOOL": 1, "INT32": 4, "INT64": 8}
_CODES = {"FLOAT": "f", "HALF": "e", "INT8": "b", "UINT8": "B", "BOOL": "?", "INT32": "i", "INT64": "q"}


class EngineError(Exception):
    """An engine that does not load, or does not take what it is fed; the message says which."""


class DeviceEngine:
    """An execution context, device memory for one set of shapes, and one stream.

    Args:
        trt: The module `tensorrt`.
        engine: Deserialised.
        cuda: The device.
        feeds: Shape and values of each input by name; kept on the host until `feed` replaces them.

    Attributes:
        context_ms: Time that the execution context took.

    Raises:
        EngineError: No context, a shape outside of the profile, or a type that is not supported.
        OSError: The CUDA runtime failed, for lack of memory as a rule.
    """

    def __init__(
        self, trt: Any, engine: Any, cuda: Cuda, feeds: Mapping[str, tuple[Sequence[int], array[float]]]
    ) -> None:
        self._trt, self._engine, self._cuda = trt, engine, cuda
        began = time.perf_counter()
        self._context = engine.create_execution_context()
        self.context_ms = (time.perf_counter() - began) * 1e3
        if self._context is None:
            raise EngineError("TensorRT could not create an execution context; memory is probably short")
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self.inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self.output_names = [name for name in names if name not in self.inputs]
        self._events = (cuda.event(), cuda.event())
        self._host: dict[str, Any] = {}
        self._device: dict[str, int] = {}
        missing = [name for name in self.inputs if name not in feeds]
        if missing:
            raise EngineError(f"the engine's input {missing[0]!r} is not fed; given: {', '.join(feeds)}")
        for name in self.inputs:
            shape, values = feeds[name]
            if not self._context.set_input_shape(name, tuple(shape)):
                raise EngineError(f"the engine takes no input {name!r} of shape {list(shape)}")
            self._place(name, _packed(values, self._type(name)))
        for name in self.output_names:
            size = BYTES_OF[self._type(name)]
            for axis in self._context.get_tensor_shape(name):
                size *= int(axis)
            self._place(name, bytes(size))

    def feed(self, name: str, values: array[float]) -> None:
        """Replaces the values of an input; their number stays."""
        content = _packed(values, self._type(name))
        if len(content) != len(self._host[name]):
            raise EngineError(f"{len(values)} values are another number than the input {name!r} has")
        ctypes.memmove(self._host[name], content, len(content))

    def run(self) -> None:
        """One inference with host arrays: inputs copied in, run, outputs back on the host."""
        self._copy_in()
        self._execute()
        for name in self.output_names:
            self._cuda.to_host(self._host[name], self._device[name], len(self._host[name]))
        self._cuda.wait()

    def device_ns(self, calls: int) -> list[int]:
        """Nanoseconds that each of `calls` inferences took on the device, without copies."""
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
        """What the inspector says of the engine's layers, and their times over so many calls."""
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
        """Values of each output of the last `run`, flat, in the engine's order."""
        return [_unpacked(bytes(self._host[name]), self._type(name)) for name in self.output_names]

    def close(self) -> None:
        """Frees the engine and its memory."""
        self._context = None  # before its engine
        self._engine = None
        for place in self._device.values():
            self._cuda.free(place)

    def _copy_in(self) -> None:
        for name in self.inputs:
            self._cuda.to_device(self._device[name], self._host[name], len(self._host[name]))

    def _execute(self) -> None:
        if not self._context.execute_async_v3(self._cuda.stream.value):
            raise RuntimeError("TensorRT reported that the execution failed; its log names the reason")

    def _type(self, name: str) -> str:
        found = str(self._engine.get_tensor_dtype(name).name)
        if found not in BYTES_OF:
            raise EngineError(f"the engine's tensor {name!r} has the type {found}, which is not supported")
        return found

    def _place(self, name: str, content: bytes) -> None:
        self._host[name] = (ctypes.c_char * len(content)).from_buffer_copy(content)
        self._device[name] = self._cuda.allocate(len(content))
        self._context.set_tensor_address(name, self._device[name])


def deserialized(content: bytes, *, host_code: bool) -> tuple[Any, Any]:
    """The module `tensorrt` and the engine.

    Args:
        content: Of an engine whose fingerprint was checked, or that was built here.
        host_code: Whether the engine may bring a runtime of its own along, as a version-compatible one does.

    Raises:
        EngineError: It cannot read the engine.
        ImportError: The bindings are not installed.
    """
    import tensorrt as trt

    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    if host_code:
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise EngineError(f"TensorRT {trt.__version__} cannot read the engine: damaged, or of another version")
    return trt, engine


def _listener(trt: Any) -> Any:
    """An object that TensorRT tells the time of each layer; `times_ms` holds them by the layer's name."""

    class Listener(trt.IProfiler):  # type: ignore[misc]  # the base is known where TensorRT is
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.times_ms: dict[str, list[float]] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times_ms.setdefault(layer_name, []).append(ms)

    return Listener()


def _packed(values: array[float], kind: str) -> bytes:
    """The bytes of values; of integer inputs, which images are not, zeros."""
    if kind == "FLOAT":
        return values.tobytes()
    if kind == "HALF":
        return struct.pack(f"{len(values)}e", *values)
    return bytes(BYTES_OF[kind] * len(values))


def _unpacked(content: bytes, kind: str) -> list[float]:
    return [float(value) for value in struct.unpack(f"{len(content) // BYTES_OF[kind]}{_CODES[kind]}", content)]
