"""OpenVINO: opens ONNX graphs, tuned by its own latency hint, on the CPU unless a device is named (`openvino:gpu`).

Computes in float32 unless the graph says otherwise: on CPUs with bfloat16 units and on GPUs the default would silently
lower the precision, and FP32 figures would not be what they claim. NPUs have no float32 and compute in float16. Which
device really runs is asked of the compiled model. CPU and AUTO have run in our tests; GPU and NPU were not at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal, Self

from pydantic import JsonValue

from edgekd.core.blobs import Blobs
from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.layers import HEAVY, Arithmetic, LayerReport, LayerTime, layer_report
from edgekd.errors import DeviceUnavailable, UserError
from edgekd.runtimes.engines.openvino_request import COUNTING, bound, counters_of, cpu_settings, executing, run_bound
from edgekd.runtimes.refused import refusal
from edgekd.runtimes.session import Availability, FloatArray, Runtime, checked_feeds, computes_in_int8

Device = Literal["CPU", "GPU", "NPU", "AUTO"]
COUNTERS = "OpenVINO performance counters"
CONVERSIONS = frozenset({"Reorder", "Convert", "FakeQuantize", "Transpose"})


class OpenVinoSession:
    """A compiled model with one infer request; see `Session` for the contract."""

    def __init__(self, compiled: Any, runtime: str) -> None:
        self._compiled, self._runtime = compiled, runtime
        self._request = compiled.create_infer_request()
        self._shapes = {port.get_any_name(): _shape(port) for port in compiled.inputs}
        self._outputs = [port.get_any_name() for port in compiled.outputs]
        fixed = all(isinstance(n, int) for s in self._shapes.values() for n in s)
        self._memory = bound(compiled, self._request) if fixed else None

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(self._shapes)

    def infer(self, feeds: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        # Checked first: a request runs happily on the previous call's values of an input that is missing.
        checked_feeds(feeds, self._shapes)
        try:
            if self._memory is None:
                # Inputs are read where they lie; outputs are copied, because the request overwrites its own.
                found = self._request.infer(feeds, share_inputs=True)
                return {name: found[index] for index, name in enumerate(self._outputs)}
            values = run_bound(self._request, self._memory, feeds, len(self._outputs))
        except RuntimeError as err:
            raise UserError(f"OpenVINO could not run the graph: {err}") from err
        return dict(zip(self._outputs, values, strict=True))

    def counters(self, feeds: Mapping[str, FloatArray], calls: int) -> list[dict[str, Any]]:
        """What `counters_of` tells, of a model that was compiled to count."""
        return counters_of(self._request, lambda: self.infer(feeds), calls)

    def compiled_graph(self) -> list[Any]:
        """The nodes that the model was compiled to, in the order they run."""
        return list(self._compiled.get_runtime_model().get_ordered_ops())

    def environment(self) -> dict[str, JsonValue]:
        import openvino

        compiled = self._compiled
        return {
            "runtime": self._runtime,
            "version": openvino.get_version(),
            "provider": ",".join(executing(compiled)),
            "threads": _asked(compiled, "INFERENCE_NUM_THREADS", int),
            "performance_hint": str(compiled.get_property("PERFORMANCE_HINT")).split(".")[-1],
            "inference_precision": _asked(compiled, "INFERENCE_PRECISION_HINT", lambda found: found.get_type_name()),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._request = self._compiled = None


class OpenVino(Runtime):
    """Intel's OpenVINO on one kind of device."""

    name: ClassVar[str] = "openvino"
    accepts: ClassVar[frozenset[BundleKind]] = frozenset({BundleKind.ONNX})
    model_file: ClassVar[str] = "model.onnx"

    def __init__(self, device: Device) -> None:
        self.device = device
        if device != "CPU":
            self.name = f"openvino:{device.lower()}"  # type: ignore[misc]  # one class serves all devices

    def availability(self) -> Availability:
        try:
            import openvino
        except ImportError as err:
            return Availability(ok=False, reason=f"openvino: {err}", install="pip install openvino")
        version, there = openvino.get_version().split("-")[0], openvino.Core().available_devices
        if self.device != "AUTO" and not any(_kind(name) == self.device for name in there):
            return Availability(
                ok=False,
                version=version,
                reason=f"OpenVINO finds no {self.device} here; it finds {', '.join(there) or 'no device'}",
                install=f"install the driver of the {self.device} (OpenVINO's installation guide lists them)",
            )
        return Availability(ok=True, version=version)

    def open(self, path: Path, *, threads: int | None = None, batch: int | None = None) -> OpenVinoSession:
        return self._opened(path, threads=threads, batch=batch, counting=False)

    def _opened(self, path: Path, *, threads: int | None, batch: int | None, counting: bool) -> OpenVinoSession:
        session = OpenVinoSession(_compiled(path, self.device, threads, batch, counting), self.name)
        found = executing(session._compiled)
        if self.device != "AUTO" and [_kind(name) for name in found] != [self.device]:
            raise DeviceUnavailable(f"OpenVINO was asked for the {self.device}, and would run on {', '.join(found)}.")
        return session

    def layers(
        self,
        bundle: ModelBundle,
        blobs: Blobs,
        feeds: Mapping[str, FloatArray],
        *,
        threads: int | None = None,
        batch: int | None = None,
        calls: int = 20,
    ) -> LayerReport:
        path = blobs.path(bundle.file(self.model_file))
        with self._opened(path, threads=threads, batch=batch, counting=True) as session:
            device = ",".join(executing(session._compiled))
            counters = session.counters(feeds, calls)
        return layer_report(
            layers_from_counters(counters, device),
            source=COUNTERS,
            calls=calls,
            provider=device,
            quantized=computes_in_int8(bundle),
        )


RUNTIME, GPU, NPU, AUTO = OpenVino("CPU"), OpenVino("GPU"), OpenVino("NPU"), OpenVino("AUTO")


@dataclass(frozen=True, kw_only=True)
class ExecutedLayer:
    """A layer of a compiled model.

    Attributes:
        name: As OpenVINO names it.
        kind: Its type: `Convolution`, `FullyConnected` ...
        kernel: Implementation.
        precision: That it computes in: `f32`, `i8`, `u8` ...
        originals: Names of the nodes of the graph that went into it.
    """

    name: str
    kind: str
    kernel: str
    precision: str
    originals: tuple[str, ...]

    @property
    def heavy(self) -> bool:
        """Whether quantization is for it."""
        return self.kind in HEAVY


def executed_layers(path: Path) -> tuple[ExecutedLayer, ...]:
    """The layers that OpenVINO's CPU plugin compiles a graph to, in the order they run.

    Raises:
        UserError: The graph does not load.
    """
    session = RUNTIME.open(path)
    layers = []
    for node in session.compiled_graph():
        facts = {key: value.astype(str) for key, value in node.get_rt_info().items()}
        layers.append(
            ExecutedLayer(
                name=node.get_friendly_name(),
                kind=facts.get("layerType", ""),
                kernel=facts.get("primitiveType", ""),
                precision=facts.get("runtimePrecision", ""),
                originals=tuple(facts.get("originalLayersNames", "").split(",")),
            )
        )
    return tuple(layers)


def layers_from_counters(counters: Sequence[Mapping[str, Any]], device: str) -> list[LayerTime]:
    """The layers of a compiled model.

    Args:
        counters: See `edgekd.runtimes.engines.openvino_request.counters_of`.
        device: That ran them.
    """
    return [
        LayerTime(provider=device, arithmetic=arithmetic(told["op"], told["kernel"]), **dict(told)) for told in counters
    ]


def arithmetic(op: str, kernel: str) -> Arithmetic:
    """What a layer computed in: kernels end in their type, `brgconv_avx512_I8` for example."""
    if op in CONVERSIONS:
        return "conversion"
    suffix = kernel.rpartition("_")[2].lower()
    if suffix in ("i8", "u8"):
        return "int8"
    return "float" if suffix in ("f32", "f16", "bf16", "fp32", "fp16") else "other"


def _settings(device: Device, threads: int | None) -> dict[str, Any]:
    """How a model is compiled for a device."""
    cpu = cpu_settings(threads)
    if device == "CPU":
        return cpu
    hint = {"PERFORMANCE_HINT": cpu.pop("PERFORMANCE_HINT")}
    precision = {"INFERENCE_PRECISION_HINT": cpu["INFERENCE_PRECISION_HINT"]}
    if device == "AUTO":
        # Without a start on the CPU: the first calls would be timed there, and the later ones elsewhere.
        per_device = {"CPU": cpu, "GPU": precision}
        return {**hint, "ENABLE_STARTUP_FALLBACK": False, "DEVICE_PROPERTIES": per_device}
    return hint if device == "NPU" else {**hint, **precision}


def _compiled(path: Path, device: Device, threads: int | None, batch: int | None, counting: bool) -> Any:
    import openvino

    settings = _settings(device, threads)
    if counting:
        settings |= COUNTING
    core = openvino.Core()
    try:
        model = core.read_model(path)
        if batch is not None:
            _fix_batch_(model, batch, path)
        return core.compile_model(model, device, settings)
    except RuntimeError as err:
        raise refusal(f"OpenVINO {openvino.get_version()}", str(err), path, runtime="openvino") from err


def _kind(name: str) -> str:
    """`GPU` of `GPU.0`."""
    return name.partition(".")[0]


def _asked(compiled: Any, name: str, read: Callable[[Any], int | str]) -> int | str | None:
    """A property of a compiled model; None where its device has none of the name."""
    try:
        return read(compiled.get_property(name))
    except RuntimeError:
        return None


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
