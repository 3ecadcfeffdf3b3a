"""TensorRT without PyTorch: loads an engine that fits this device, or builds it here from the graph in the bundle.

Uses the names that every TensorRT from 8.6 to 11 has. Not run on hardware yet: tested against fakes of the binding and
of CUDA's library.
"""

from __future__ import annotations

import hashlib
import platform
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd_runtime.bundle import Bundle
from edgekd_runtime.cuda import Cuda
from edgekd_runtime.deploy import EngineEntry
from edgekd_runtime.errors import Unusable
from edgekd_runtime.fingerprint import Device, Fingerprint, parse_fingerprint
from edgekd_runtime.session import FloatArray, Options, model_file
from edgekd_runtime.tensorrt_build import Built, build, built_before, job_of

INSTALL = "on a Jetson, JetPack has it (use the system's Python); elsewhere: pip install tensorrt"
FORMATS: tuple[str, ...] = ("tensorrt", "onnx")
ENGINE_FILE = "model.engine"
FLOAT16_AROUND_INT8 = "tensorrt-s8-fp16"
"""Scheme of INT8 graphs that compute in float16 between their 8-bit layers."""
_DTYPES = {"FLOAT": np.float32, "HALF": np.float16, "INT8": np.int8, "INT32": np.int32, "INT64": np.int64}


class TensorRtSession:
    """A deserialised engine, its context, one stream and its device memory; see `Session` for the contract."""

    def __init__(
        self, content: bytes, *, names: tuple[str, str], trusted_host_code: bool, cuda: Cuda, origin: str
    ) -> None:
        import tensorrt as trt

        self.batch: int | None = None
        self.max_batch: int | None = None
        self._trt, self._cuda, self._origin = trt, cuda, origin
        self._buffers: dict[str, tuple[npt.NDArray[Any], int]] = {}
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)
        if trusted_host_code:
            self._runtime.engine_host_code_allowed = True  # a version-compatible engine brings its own runtime along
        self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise Unusable(f"TensorRT {trt.__version__} cannot read the engine; its log on stderr says why")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise Unusable("TensorRT could not create an execution context; GPU memory is probably short")
        found = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        inputs = [name for name in found if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self._outputs = [name for name in found if name not in inputs]
        self._input, self._output = names
        if inputs != [self._input] or self._output not in self._outputs:
            raise Unusable(f"the engine has the inputs {inputs} and outputs {self._outputs}, expected {names}")
        self._limit_batch()

    def run(self, images: FloatArray) -> FloatArray:
        if not self._context.set_input_shape(self._input, tuple(images.shape)):
            raise Unusable(f"the engine was not built for the shape {images.shape}")
        try:
            host, place = self._buffer(self._input, tuple(images.shape))
            host[...] = images
            self._cuda.to_device(place, host)
            for name in self._outputs:
                self._buffer(name, tuple(int(size) for size in self._context.get_tensor_shape(name)))
            if not self._context.execute_async_v3(self._cuda.stream.value):
                raise Unusable("TensorRT reported that the execution failed; its log on stderr says why")
            for name in self._outputs:
                self._cuda.to_host(*self._buffers[name])
            self._cuda.wait()
        except OSError as err:
            raise Unusable(str(err)) from err
        return self._buffers[self._output][0].astype(np.float32)  # a copy: the buffer is used again

    def facts(self) -> dict[str, Any]:
        return {
            "version": self._trt.__version__,
            "provider": self._cuda.device()[0],
            "threads": None,
            "origin": self._origin,
        }

    def close(self) -> None:
        self._context = None  # before its engine
        self._engine = self._runtime = None
        for _, place in self._buffers.values():
            self._cuda.free(place)
        self._buffers = {}
        self._cuda.close()

    def _limit_batch(self) -> None:
        """Reads how many images a call takes: one fixed number, or up to the largest of the first profile."""
        first = int(self._engine.get_tensor_shape(self._input)[0])
        if first >= 0:
            self.batch = first
        else:
            self.max_batch = int(self._engine.get_tensor_profile_shape(self._input, 0)[2][0])

    def _buffer(self, name: str, shape: tuple[int, ...]) -> tuple[npt.NDArray[Any], int]:
        """(host, address) of a tensor; allocated, and told to the context, when its shape changes."""
        held = self._buffers.get(name)
        if held is not None and held[0].shape == shape:
            return held
        kind = str(self._engine.get_tensor_dtype(name).name)
        if kind not in _DTYPES:
            raise Unusable(f"the engine's tensor {name!r} has the type {kind}, which is not supported")
        if held is not None:
            self._cuda.free(self._buffers.pop(name)[1])
        host = np.zeros(shape, dtype=_DTYPES[kind])
        place = self._cuda.allocate(max(1, host.nbytes))
        self._buffers[name] = (host, place)
        self._context.set_tensor_address(name, place)
        return self._buffers[name]


def open_engine(bundle: Bundle, entry: EngineEntry, options: Options) -> TensorRtSession:
    """See `Opener`. For a graph, an engine is built here first, or taken from those that were built here before."""
    import tensorrt

    try:
        cuda = Cuda()
        here = _device(cuda, str(tensorrt.__version__))
    except OSError as err:
        raise Unusable(f"there is no CUDA device: {err}") from err
    try:
        return _opened(bundle, entry, options, cuda, here)
    except BaseException:
        cuda.close()
        raise


def _opened(bundle: Bundle, entry: EngineEntry, options: Options, cuda: Cuda, here: Device) -> TensorRtSession:
    fingerprint: Fingerprint | None = None
    names = bundle.deploy.input.name, bundle.deploy.outputs[0].name
    if entry.format == "tensorrt":
        try:
            fingerprint = _fingerprint(bundle, entry)
            content = _own_content(bundle, entry, fingerprint, here)
            compatible = fingerprint.version_compatible
            return TensorRtSession(content, names=names, trusted_host_code=compatible, cuda=cuda, origin="the bundle")
        except Unusable as err:
            reason = err.reason
    else:
        reason = "it is a graph, from which TensorRT has to build an engine on this device"
    source = _source(bundle, entry)
    if source is None:
        raise Unusable(f"{reason}; the bundle has no graph to build it from")
    if source.scheme == FLOAT16_AROUND_INT8 and int(here.tensorrt.split(".")[0]) < 10:
        raise Unusable(f"its graph has scales in float16, which TensorRT reads from 10 on; here is {here.tensorrt}")
    job = job_of(bundle, entry, source, here, {} if fingerprint is None else fingerprint.settings)
    found: Built | None = built_before(job, options.cache)
    if found is None and not options.rebuild:
        raise Unusable(reason, "rebuild=True (--rebuild) builds it here once, in minutes")
    origin = "the cache"
    if found is None:
        found, origin = build(job, bundle, options.cache), f"built here, because {reason}"
    compatible = found.version_compatible
    return TensorRtSession(found.engine, names=names, trusted_host_code=compatible, cuda=cuda, origin=origin)


def _device(cuda: Cuda, version: str) -> Device:
    gpu, capability, count = cuda.device()
    return Device(gpu, capability, version, platform.system().lower(), platform.machine(), count)


def _fingerprint(bundle: Bundle, entry: EngineEntry) -> Fingerprint:
    if entry.fingerprint is None:
        raise Unusable("it has no fingerprint, so that nobody knows what it was built for")
    return parse_fingerprint(bundle.json(entry.fingerprint), entry.fingerprint)


def _own_content(bundle: Bundle, entry: EngineEntry, fingerprint: Fingerprint, here: Device) -> bytes:
    """The engine's bytes, if the fingerprint is theirs and fits."""
    reasons = fingerprint.misfits(here)
    if reasons:
        raise Unusable("; ".join(reasons))
    content = bundle.read(model_file(entry, ENGINE_FILE))
    if hashlib.sha256(content).hexdigest() != fingerprint.engine_sha256:
        raise Unusable("its fingerprint belongs to another file")
    return content


def _source(bundle: Bundle, entry: EngineEntry) -> EngineEntry | None:
    """The entry of the graph that an engine is built from: itself, or the one that it names."""
    if entry.format == "onnx":
        return entry
    return next((one for one in bundle.deploy.engines if one.name == entry.source and one.format == "onnx"), None)
