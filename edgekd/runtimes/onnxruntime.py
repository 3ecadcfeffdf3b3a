"""ONNX Runtime: opens ONNX graphs, and exposes their inner values for parity and range checks.

On the CPU; `edgekd.runtimes.onnxruntime_providers` opens them with other execution providers.

The graph runs with the library's own default optimisations and threading, as a deployment that follows its manual
would run it; nothing is tuned here that the README.txt of a deployed package does not tell.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from edgekd.core.blobs import Blobs
from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.layers import LayerReport, layer_report
from edgekd.errors import UserError
from edgekd.runtimes.onnxruntime_layers import layers_from_trace
from edgekd.runtimes.refused import refusal
from edgekd.runtimes.session import Availability, FloatArray, Runtime, checked_feeds, computes_in_int8

if TYPE_CHECKING:
    import onnx

FOLD_WEIGHTS = ("session.disable_quant_qdq", "1")
"""Session setting: Q/DQ nodes are ordinary operators, so that those of constant weights are computed once, at loading,
and not on every run; for graphs without quantized activations. Everything is then computed in float32."""
_LOG_ERRORS_ONLY = 3
WARM_CALLS = 3
"""Calls before those whose layers are recorded: the first ones grow the memory arena."""


@dataclass(frozen=True, kw_only=True)
class Provider:
    """An execution provider and how it is asked for.

    Attributes:
        name: As ONNX Runtime has it.
        options: Of the provider.
        threads_option: The option that takes its number of threads; empty when it has none of its own.
        memory_pattern: Whether memory may be planned ahead.
    """

    name: str
    options: Mapping[str, str] = field(default_factory=dict)
    threads_option: str = ""
    memory_pattern: bool = True

    def asked(self, threads: int | None) -> list[tuple[str, dict[str, str]]]:
        """What a session is given: this provider, and the CPU's for what it cannot run."""
        own = {self.threads_option: str(threads)} if self.threads_option and threads is not None else {}
        rest = [] if self.name == CPU_PROVIDER.name else [(CPU_PROVIDER.name, dict[str, str]())]
        return [(self.name, {**self.options, **own}), *rest]


CPU_PROVIDER = Provider(name="CPUExecutionProvider")
RECORD_ASSIGNMENT = ("session.record_ep_graph_assignment_info", "1")
"""Session setting: the session can say which provider holds each node; older versions do not know it and ignore it."""


class OnnxRuntimeSession:
    """A graph in one ONNX Runtime session; see `Session` for the contract."""

    def __init__(
        self, session: Any, threads: int | None = None, *, folds_weights: bool = False, runtime: str = "onnxruntime"
    ) -> None:
        self._runtime = runtime
        self._session = session
        self._threads = threads
        self._folds_weights = folds_weights
        self._shapes = {entry.name: tuple(entry.shape) for entry in session.get_inputs()}
        self._outputs = [entry.name for entry in session.get_outputs()]

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(self._shapes)

    def infer(self, feeds: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        try:
            found = self._session.run(self._outputs, feeds)
        except Exception as err:  # the library's exceptions have no common base below Exception
            checked_feeds(feeds, self._shapes)
            raise UserError(f"ONNX Runtime could not run the graph: {err}") from err
        return dict(zip(self._outputs, found, strict=True))

    def environment(self) -> dict[str, JsonValue]:
        import onnxruntime

        return {
            "runtime": self._runtime,
            "version": onnxruntime.__version__,
            "provider": self._session.get_providers()[0],
            "threads": self._threads,
            "graph_optimization": "all",
            "execution_mode": "sequential",
            "weights_dequantized": "at loading" if self._folds_weights else "as the graph says",
        }

    def end_trace(self) -> Path:
        """The file that holds the nodes' times, of a session that was opened to record them."""
        return Path(self._session.end_profiling())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The native session, with its threads and its arena, goes with the last reference.
        self._session = None


class OnnxRuntime(Runtime):
    """Microsoft's ONNX Runtime with its CPU execution provider."""

    name: ClassVar[str] = "onnxruntime"
    accepts: ClassVar[frozenset[BundleKind]] = frozenset({BundleKind.ONNX})
    model_file: ClassVar[str] = "model.onnx"

    def availability(self) -> Availability:
        try:
            import onnxruntime
        except ImportError as err:
            return Availability(ok=False, reason=f"onnxruntime: {err}", install="pip install onnxruntime")
        return Availability(ok=True, version=onnxruntime.__version__)

    def provider_for(self, precision: str) -> Provider:
        """The provider that runs graphs of this precision."""
        return CPU_PROVIDER

    def wrapped(self, session: Any, threads: int | None, *, folds_weights: bool) -> OnnxRuntimeSession:
        """The library's session as ours, once it is known to be what was asked for.

        Raises:
            DeviceUnavailable: It is not.
        """
        return OnnxRuntimeSession(session, threads, folds_weights=folds_weights)

    def open(self, path: Path, *, threads: int | None = None, batch: int | None = None) -> OnnxRuntimeSession:
        return self._session(path, threads=threads, batch=batch)

    def open_bundle(
        self, bundle: ModelBundle, blobs: Blobs, *, threads: int | None = None, batch: int | None = None
    ) -> OnnxRuntimeSession:
        return self._session(blobs.path(bundle.file(self.model_file)), threads=threads, batch=batch, bundle=bundle)

    def _session(
        self,
        path: Path,
        *,
        threads: int | None,
        batch: int | None,
        bundle: ModelBundle | None = None,
        trace: Path | None = None,
    ) -> OnnxRuntimeSession:
        tags = {} if bundle is None else bundle.tags
        folds = tags.get("scheme") == "weight-only"
        provider = self.provider_for(str(tags.get("precision", "fp32")))
        axes = None if bundle is None else _batch_axes(bundle)
        options = _options(path, provider, threads=threads, batch=batch, folds_weights=folds, axes=axes, trace=trace)
        session = _opened(str(path), options, providers=provider.asked(threads))
        opened = self.wrapped(session, threads, folds_weights=folds)
        _require_batch(opened, batch, path)
        return opened

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
        with tempfile.TemporaryDirectory(prefix="edgekd-") as folder:
            trace = Path(folder) / "trace"
            with self._session(path, threads=threads, batch=batch, bundle=bundle, trace=trace) as session:
                for _ in range(WARM_CALLS + calls):
                    session.infer(feeds)
                trace = session.end_trace()
            nodes = layers_from_trace(trace, calls)
        return layer_report(
            nodes,
            source="ONNX Runtime profile",
            calls=calls,
            provider=self.provider_for("").name,
            quantized=computes_in_int8(bundle),
        )


RUNTIME = OnnxRuntime()


def values_in_graph(model: onnx.ModelProto, feeds: Mapping[str, FloatArray]) -> dict[str, NDArray[np.floating[Any]]]:
    """Every float32 and float16 value that the graph's nodes compute on `feeds`, by name, in the order of computation.

    The graph runs as it is written, without optimisations, so that each value exists. All of them are in memory at
    once: feed a few images.

    Args:
        model: Left as it was.
        feeds: Arrays by input name.

    Raises:
        UserError: The graph does not load or run.
    """
    import onnx
    import onnxruntime

    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    del exposed.graph.output[:]
    names = [name for node in model.graph.node for name in node.output if name]
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _LOG_ERRORS_ONLY
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = _opened(exposed.SerializeToString(), options, "the graph with its inner values exposed")
    found: Iterable[Any] = session.run(names, dict(feeds))
    return {name: value for name, value in zip(names, found, strict=True) if _is_float(value)}


def inner_values(
    model: onnx.ModelProto, names: Sequence[str], feeds: Iterable[Mapping[str, FloatArray]]
) -> Iterator[dict[str, NDArray[np.floating[Any]]]]:
    """The named inner values of a graph for each of the feeds, one feed in memory at a time.

    Unlike in `values_in_graph` the graph is optimised around what is asked for, so that many images take little longer
    than plain inference.

    Args:
        model: A graph without Q/DQ nodes; left as it was.
        names: Of values that nodes compute.
        feeds: Arrays by input name.

    Raises:
        UserError: The graph does not load.
    """
    import onnx
    import onnxruntime

    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    present = {value.name for value in exposed.graph.output}
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _LOG_ERRORS_ONLY
    session = _opened(exposed.SerializeToString(), options, "the graph with its inner values exposed")
    for feed in feeds:
        yield dict(zip(names, session.run(list(names), dict(feed)), strict=True))


def emulated(path: Path) -> OnnxRuntimeSession:
    """A session that computes a Q/DQ graph in float32, rounding exactly where the graph says and nowhere else.

    The difference to `OnnxRuntime.open` is what this CPU's 8-bit kernels add: on x86 without VNNI they add pairs of
    products in 16 bits and saturate. It also stands for hardware that is not at hand.
    """
    options = _options(path, CPU_PROVIDER, threads=None, batch=None, folds_weights=True)
    return OnnxRuntimeSession(_opened(str(path), options), folds_weights=True)


def exact_outputs(model: onnx.ModelProto, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float64]]:
    """What a graph gives when it rounds exactly where it says and nowhere else, all outputs as float64.

    Args:
        model: Left as it was.
        feeds: Arrays by input name.

    Raises:
        UserError: The graph does not load or run.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _LOG_ERRORS_ONLY
    options.add_session_config_entry(*FOLD_WEIGHTS)
    session = _opened(model.SerializeToString(), options)
    try:
        return [np.asarray(value, np.float64) for value in session.run(None, dict(feeds))]
    except Exception as err:  # the library's exceptions have no common base below Exception
        raise UserError(f"ONNX Runtime could not run the graph: {err}") from err


def optimised_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph that ONNX Runtime makes of a graph before it runs it: layers fused, Q/DQ pairs taken into kernels.

    Layouts that depend on the processor are left out, so the same graph comes out on any machine.

    Args:
        model: Left as it was.

    Raises:
        UserError: The graph does not load.
    """
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _LOG_ERRORS_ONLY
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    with tempfile.TemporaryDirectory(prefix="edgekd-") as folder:
        path = Path(folder) / "optimised.onnx"
        options.optimized_model_filepath = str(path)
        _opened(model.SerializeToString(), options)
        return onnx.load(path)


def _batch_axes(bundle: ModelBundle) -> tuple[str, ...] | None:
    """The names of the inputs' batch axes as the bundle knows them; None where it knows none."""
    axes = {str(spec.shape[0]) for spec in bundle.inputs if spec.shape}
    return None if not axes or "?" in axes else tuple(sorted(axes))


def _options(
    path: Path,
    provider: Provider,
    *,
    threads: int | None,
    batch: int | None,
    folds_weights: bool,
    axes: Sequence[str] | None = None,
    trace: Path | None = None,
) -> Any:
    """How to open a graph.

    Args:
        path: The graph.
        provider: That shall run it.
        threads: CPU threads; None leaves the library's default.
        batch: Fixes the batch.
        folds_weights: See `FOLD_WEIGHTS`.
        axes: Names of the batch axes; None reads them from the file, which costs its whole size in memory.
        trace: Where to record the nodes' times, the beginning of a file name; None records nothing.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _LOG_ERRORS_ONLY
    options.inter_op_num_threads = 1
    if threads is not None:
        options.intra_op_num_threads = threads
    if batch is not None:
        for axis in _axes_of_file(path) if axes is None else axes:
            options.add_free_dimension_override_by_name(axis, batch)
    if folds_weights:
        options.add_session_config_entry(*FOLD_WEIGHTS)
    if trace is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(trace)
    if provider.name != CPU_PROVIDER.name:
        options.add_session_config_entry(*RECORD_ASSIGNMENT)
    options.enable_mem_pattern = provider.memory_pattern
    return options


def _axes_of_file(path: Path) -> list[str]:
    from edgekd.runtimes.onnx_file import onnx_interface

    return sorted({str(spec.shape[0]) for spec in onnx_interface(path)[0] if spec.shape})


def _opened(
    source: str | bytes,
    options: Any,
    where: str = "the graph",
    providers: Sequence[tuple[str, dict[str, str]]] | None = None,
) -> Any:
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(source, options, providers=providers or CPU_PROVIDER.asked(None))
    except Exception as err:  # the library's exceptions have no common base below Exception
        library = f"ONNX Runtime {onnxruntime.__version__}"
        if isinstance(source, str):
            raise refusal(library, str(err), Path(source), runtime="onnxruntime") from err
        raise UserError(f"{library} cannot load {where}: {err}") from err


def _require_batch(session: OnnxRuntimeSession, batch: int | None, path: Path) -> None:
    for name, shape in session._shapes.items():
        if batch is not None and shape and shape[0] != batch:
            raise UserError(
                f"{path}: the input {name!r} has the shape {list(shape)}, so its batch cannot be fixed to {batch}.",
                hint="a batch can be fixed when the first axis is dynamic and has a name",
            )


def _is_float(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.dtype in (np.float32, np.float16)
