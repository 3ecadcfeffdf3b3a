"""OpenVINO on the CPU: opens ONNX graphs, tuned by its own latency hint.

Computes in float32 unless the graph says otherwise: on CPUs with bfloat16 units the default would silently lower the
precision, and FP32 figures would not be what they claim.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from pydantic import JsonValue

from edgekd.core.bundle import BundleKind
from edgekd.errors import UserError
from edgekd.runtimes.session import Availability, FloatArray, Runtime, checked_feeds

DEVICE = "CPU"


class OpenVinoSession:
    """A compiled model with one infer request; see `Session` for the contract."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._request = compiled.create_infer_request()
        self._shapes = {port.get_any_name(): _shape(port) for port in compiled.inputs}
        self._outputs = [port.get_any_name() for port in compiled.outputs]
        self._bound = self._bind() if all(isinstance(n, int) for s in self._shapes.values() for n in s) else None

    def _bind(self) -> dict[str, FloatArray]:
        """Input memory that stays with the request, for sizes that never change.

        Handing arrays to each call costs the Python binding about 0.1 ms, a third of a small network's latency.
        """
        import openvino

        bound = {}
        for port in self._compiled.inputs:
            tensor = openvino.Tensor(port.get_element_type(), port.get_shape())
            self._request.set_tensor(port, tensor)
            bound[port.get_any_name()] = tensor.data
        return bound

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(self._shapes)

    def infer(self, feeds: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        # Checked first: a request runs happily on the previous call's values of an input that is missing.
        checked_feeds(feeds, self._shapes)
        try:
            if self._bound is None:
                # Inputs are read where they lie; outputs are copied, because the request overwrites its own.
                found = self._request.infer(feeds, share_inputs=True)
                return {name: found[index] for index, name in enumerate(self._outputs)}
            for name, memory in self._bound.items():
                memory[...] = feeds[name]
            self._request.infer()
        except RuntimeError as err:
            raise UserError(f"OpenVINO could not run the graph: {err}") from err
        return {n: self._request.get_output_tensor(i).data.copy() for i, n in enumerate(self._outputs)}

    def environment(self) -> dict[str, JsonValue]:
        import openvino

        compiled = self._compiled
        return {
            "runtime": "openvino",
            "version": openvino.get_version(),
            "provider": ",".join(compiled.get_property("EXECUTION_DEVICES")),
            "threads": int(compiled.get_property("INFERENCE_NUM_THREADS")),
            "performance_hint": str(compiled.get_property("PERFORMANCE_HINT")).split(".")[-1],
            "inference_precision": compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name(),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._request = self._compiled = None


class OpenVino(Runtime):
    """Intel's OpenVINO with its CPU plugin."""

    name: ClassVar[str] = "openvino"
    accepts: ClassVar[frozenset[BundleKind]] = frozenset({BundleKind.ONNX})
    model_file: ClassVar[str] = "model.onnx"

    def availability(self) -> Availability:
        try:
            import openvino
        except ImportError as err:
            return Availability(ok=False, reason=f"openvino: {err}", install="pip install openvino")
        return Availability(ok=True, version=openvino.get_version().split("-")[0])

    def open(self, path: Path, *, threads: int | None = None, batch: int | None = None) -> OpenVinoSession:
        import openvino

        settings: dict[str, str | int] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        core = openvino.Core()
        try:
            model = core.read_model(path)
            if batch is not None:
                _fix_batch_(model, batch, path)
            compiled = core.compile_model(model, DEVICE, settings)
        except RuntimeError as err:
            raise UserError(f"OpenVINO {openvino.get_version()} cannot load {path}: {err}") from err
        return OpenVinoSession(compiled)


RUNTIME = OpenVino()


def _fix_batch_(model: Any, batch: int, path: Path) -> None:
    import openvino

    shapes = {}
    for port in model.inputs:
        shape = port.get_partial_shape()
        if shape[0].is_static and shape[0].get_length() != batch:
            raise UserError(
                f"{path}: the input {port.get_any_name()!r} has the shape {shape}, so its batch cannot be fixed to "
                f"{batch}.",
                hint="a batch can be fixed when the first axis is dynamic",
            )
        shape[0] = openvino.Dimension(batch)
        shapes[port] = shape
    model.reshape(shapes)


def _shape(port: Any) -> tuple[int | str, ...]:
    """The port's shape; dynamic axes as `?`."""
    return tuple(axis.get_length() if axis.is_static else "?" for axis in port.get_partial_shape())
