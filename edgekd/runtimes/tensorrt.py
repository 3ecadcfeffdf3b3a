"""TensorRT: opens engines on the GPU they were built for, and only those that edgekd built.

An engine is native code: its digest and its fingerprint are checked before TensorRT sees a byte of it. Uses only the
names that every TensorRT from 8.6 to 11 has; device memory and streams come from PyTorch. Written against the published
Python bindings and not run on hardware yet: without a GPU, `availability` says so and nothing else works.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from pydantic import JsonValue

from edgekd.core.blobs import Blobs
from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.errors import DeviceUnavailable, UserError
from edgekd.runtimes.engines.tensorrt_run import EngineError, deserialized
from edgekd.runtimes.fingerprint import (
    FINGERPRINT_FILE,
    Device,
    Fingerprint,
    FingerprintError,
    read_fingerprint,
    require_own_engine,
)
from edgekd.runtimes.session import Availability, FloatArray, Runtime, checked_feeds

if TYPE_CHECKING:
    from torch import Tensor

NATIVE = "Engines are native code, and only those that edgekd built are loaded."
AGAIN = "edgekd build BUNDLE builds it again, on the device it is for, from the ONNX graph in the bundle"
INSTALL = "pip install 'edgekd[tensorrt]', or on a Jetson use the TensorRT that JetPack installed"


class TensorRtSession:
    """A deserialised engine with one execution context and one stream; see `Session` for the contract.

    `infer` copies the inputs to the device, runs, copies the outputs back and waits: the same region that the CPU
    runtimes are timed on.
    """

    def __init__(self, engine: Any, shapes: Mapping[str, tuple[int | str, ...]], outputs: tuple[str, ...]) -> None:
        import torch

        self._engine = engine
        self._context = engine.create_execution_context()
        if self._context is None:
            raise DeviceUnavailable(
                "TensorRT could not create an execution context; the GPU is probably out of memory."
            )
        self._shapes = dict(shapes)
        self._outputs = outputs
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._buffers: dict[str, Tensor] = {}

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(self._shapes)

    def infer(self, feeds: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        import torch

        checked_feeds(feeds, self._shapes)
        with torch.cuda.stream(self._stream):
            for name, value in feeds.items():
                if not self._context.set_input_shape(name, tuple(value.shape)):
                    raise UserError(
                        f"The engine has no optimisation profile for the input {name!r} of shape {value.shape}.",
                        hint="build it again with --max-shapes that hold this shape",
                    )
                self._buffer(name, tuple(value.shape)).copy_(torch.from_numpy(value))
            for name in self._outputs:
                self._buffer(name, tuple(self._context.get_tensor_shape(name)))
            if not self._context.execute_async_v3(self._stream.cuda_stream):
                raise DeviceUnavailable("TensorRT reported that the execution failed; its log names the reason.")
            found = {name: self._buffers[name].to("cpu") for name in self._outputs}
        self._stream.synchronize()
        return {name: value.numpy().astype(np.float32, copy=False) for name, value in found.items()}

    def environment(self) -> dict[str, JsonValue]:
        import tensorrt
        import torch

        return {
            "runtime": "tensorrt",
            "version": tensorrt.__version__,
            "provider": torch.cuda.get_device_name(),
            "threads": 1,
            "cuda": torch.version.cuda,
            "cuda_graph": False,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The context must go before its engine.
        self._context = None
        self._engine = None
        self._buffers.clear()

    def _buffer(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The device memory of a tensor; allocated, and told to the context, when its shape changes."""
        import torch

        held = self._buffers.get(name)
        if held is None or tuple(held.shape) != shape:
            held = torch.empty(shape, dtype=_torch_dtype(self._engine.get_tensor_dtype(name)), device="cuda")
            self._buffers[name] = held
            self._context.set_tensor_address(name, held.data_ptr())
        return held


class TensorRt(Runtime):
    """NVIDIA TensorRT on the current CUDA device."""

    name: ClassVar[str] = "tensorrt"
    accepts: ClassVar[frozenset[BundleKind]] = frozenset({BundleKind.ENGINE})
    formats: ClassVar[frozenset[str]] = frozenset({"tensorrt"})
    model_file: ClassVar[str] = "model.engine"

    def availability(self) -> Availability:
        try:
            import tensorrt
        except (ImportError, OSError) as err:  # OSError: the bindings are there, the native libraries are not
            return Availability(ok=False, reason=f"TensorRT is not installed ({err})", install=INSTALL)
        import torch

        if not torch.cuda.is_available():
            return Availability(
                ok=False,
                version=tensorrt.__version__,
                reason="there is no CUDA GPU on this machine, or its driver does not work",
                install="run on the device itself",
            )
        return Availability(ok=True, version=tensorrt.__version__)

    def open(self, path: Path, *, threads: int | None = None, batch: int | None = None) -> TensorRtSession:
        """A session on an engine with its fingerprint beside it, `model.engine.json` for `model.engine`."""
        return self._opened(path, path.with_name(f"{path.name}.json"), batch)

    def _opened(self, path: Path, sidecar: Path, batch: int | None) -> TensorRtSession:
        """A session on an engine that passed `require_engine_for`."""
        fingerprint = require_engine_for(device(), sidecar, path)
        try:
            tensorrt, engine = deserialized(path.read_bytes(), host_code=fingerprint.version_compatible)
        except EngineError as err:
            raise UserError(f"The engine {path.name} does not load: {err}.", hint=AGAIN) from err
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == tensorrt.TensorIOMode.INPUT]
        shapes = {name: _shape(engine.get_tensor_shape(name), batch) for name in inputs}
        return TensorRtSession(engine, shapes, tuple(name for name in names if name not in inputs))

    def open_bundle(
        self, bundle: ModelBundle, blobs: Blobs, *, threads: int | None = None, batch: int | None = None
    ) -> TensorRtSession:
        if FINGERPRINT_FILE not in bundle.files:
            raise UserError(f"The engine has no fingerprint of edgekd ({FINGERPRINT_FILE}). {NATIVE}", hint=AGAIN)
        return self._opened(blobs.path(bundle.file(self.model_file)), blobs.path(bundle.file(FINGERPRINT_FILE)), batch)


RUNTIME = TensorRt()


def device() -> Device:
    """This machine with its current GPU and its TensorRT; needs both."""
    import tensorrt
    import torch

    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return Device(
        gpu=properties.name,
        compute_capability=f"{properties.major}.{properties.minor}",
        tensorrt=tensorrt.__version__,
        os=platform.system().lower(),
        arch=platform.machine(),
        multiprocessors=properties.multi_processor_count,
        cuda=torch.version.cuda,
    )


def require_engine_for(here: Device, sidecar: Path, engine: Path) -> Fingerprint:
    """The fingerprint of an engine that edgekd built, that is unaltered, and that fits the device.

    Raises:
        UserError: No fingerprint, one that cannot be read, or bytes that it was not written for.
        DeviceUnavailable: The engine does not fit; every reason is named.
    """
    try:
        found = read_fingerprint(sidecar)
        require_own_engine(found, engine)
    except FingerprintError as err:
        raise UserError(f"The engine {engine.name} is not loaded: {err}. {NATIVE}", hint=AGAIN) from err
    reasons = found.fits(here)
    if reasons:
        raise DeviceUnavailable(f"The engine does not fit this device: {'; '.join(reasons)}.", hint=AGAIN)
    return found


def _shape(shape: Any, batch: int | None) -> tuple[int | str, ...]:
    """An input's shape with its dynamic axes named; a given batch replaces a dynamic first axis."""
    axes: list[int | str] = ["?" if axis < 0 else int(axis) for axis in shape]
    if batch is not None and axes and axes[0] == "?":
        axes[0] = batch
    return tuple(axes)


def _torch_dtype(dtype: Any) -> Any:
    import tensorrt
    import torch

    names = {"float32": torch.float32, "float16": torch.float16, "int32": torch.int32, "int8": torch.int8}
    return names[np.dtype(tensorrt.nptype(dtype)).name]
