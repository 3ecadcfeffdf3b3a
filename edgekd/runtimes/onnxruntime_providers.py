"""ONNX Runtime with another execution provider than the CPU's: one runtime each, `onnxruntime:cuda` for example.

A provider takes the nodes it can and leaves the others to the CPU, and when its libraries are missing ONNX Runtime goes
on without it. So nothing is believed here: the session says which provider holds each node, the nodes that fell back
are counted and named, and a session that the provider has no part in is an error. CPU and OpenVINO's provider have run
in our tests; CUDA, TensorRT, QNN, NNAPI, CoreML, XNNPACK and DirectML were not run on hardware: their names and options
are those of the library's documentation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import JsonValue

from edgekd.core.bundle import BundleKind
from edgekd.errors import DeviceUnavailable
from edgekd.runtimes.onnxruntime import CPU_PROVIDER, OnnxRuntime, OnnxRuntimeSession, Provider
from edgekd.runtimes.session import Availability

SHOWN = 10
"""Nodes that are named in an environment; all are counted."""


@dataclass(frozen=True, kw_only=True)
class Accelerator(Provider):
    """A provider that leaves to the CPU what it cannot run.

    Attributes:
        short: What follows `onnxruntime:` in the name of the runtime.
        install: The build that has it.
        by_precision: Options that a graph of this precision needs on top.
    """

    short: str
    install: str
    by_precision: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Which provider holds which nodes of the optimised graph.

    Attributes:
        nodes: Number of nodes by provider.
        fell_back: `operator name` of each node that another provider than the wanted one holds.
    """

    nodes: Mapping[str, int]
    fell_back: tuple[str, ...]


ACCELERATORS = (
    Accelerator(
        short="cuda",
        name="CUDAExecutionProvider",
        install="pip uninstall onnxruntime, then pip install onnxruntime-gpu; it needs CUDA and cuDNN",
        options={"use_tf32": "0"},  # float32 is what the graph says
    ),
    Accelerator(
        short="tensorrt",
        name="TensorrtExecutionProvider",
        install="pip uninstall onnxruntime, then pip install onnxruntime-gpu; it needs TensorRT",
        # Between its 8-bit layers an INT8 graph may run in half precision; parity decides whether it may stay so.
        by_precision={
            "fp16": {"trt_fp16_enable": "1"},
            "int8": {"trt_int8_enable": "1", "trt_fp16_enable": "1"},
        },
    ),
    Accelerator(
        short="qnn",
        name="QNNExecutionProvider",
        install="a build for Qualcomm: pip install onnxruntime-qnn where it exists, onnxruntime-android-qnn on Android",
        options={"backend_type": "htp"},
    ),
    Accelerator(short="nnapi", name="NnapiExecutionProvider", install="a build for Android, with --use_nnapi"),
    Accelerator(
        short="coreml",
        name="CoreMLExecutionProvider",
        install="pip install onnxruntime on macOS",
        options={"ModelFormat": "MLProgram"},
    ),
    Accelerator(
        short="xnnpack",
        name="XnnpackExecutionProvider",
        install="a build with --use_xnnpack; Android's and iOS's have it, the one on the package index does not",
        threads_option="intra_op_num_threads",
    ),
    Accelerator(
        short="directml",
        name="DmlExecutionProvider",
        install="pip uninstall onnxruntime, then pip install onnxruntime-directml (Windows)",
        memory_pattern=False,  # DirectML does not support it
    ),
    Accelerator(
        short="openvino",
        name="OpenVINOExecutionProvider",
        install="pip uninstall onnxruntime, then pip install onnxruntime-openvino",
        options={"device_type": "CPU"},
        threads_option="num_of_threads",
    ),
)


class AcceleratedSession(OnnxRuntimeSession):
    """A session of which every node's provider is known, as far as the library tells."""

    _assignment: Assignment | None

    def environment(self) -> dict[str, JsonValue]:
        found, told = super().environment(), self._assignment
        if told is None:
            return {**found, "nodes_by_provider": "told by ONNX Runtime 1.24 and later; --layers records them"}
        wanted, total = str(found["provider"]), sum(told.nodes.values())
        if told.fell_back:
            found["provider"] = f"{wanted}, without {len(told.fell_back)} of {total} nodes"
        return {**found, "nodes_by_provider": dict(told.nodes), "fell_back": list(told.fell_back[:SHOWN])}


class AcceleratedOnnxRuntime(OnnxRuntime):
    """ONNX Runtime with one accelerator, and the CPU for what that cannot run."""

    accepts: ClassVar[frozenset[BundleKind]] = frozenset({BundleKind.ONNX})
    model_file: ClassVar[str] = "model.onnx"

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        # The registry's name is the class's elsewhere; here one class serves several.
        self.name = f"onnxruntime:{accelerator.short}"  # type: ignore[misc]

    def availability(self) -> Availability:
        found = super().availability()
        if not found.ok:
            return found
        import onnxruntime

        there = onnxruntime.get_available_providers()
        if self.accelerator.name not in there:
            return Availability(
                ok=False,
                version=found.version,
                reason=f"this build of ONNX Runtime has no {self.accelerator.name}; it has {', '.join(there)}",
                install=self.accelerator.install,
            )
        return found

    def provider_for(self, precision: str) -> Provider:
        more = self.accelerator.by_precision.get(precision, {})
        options = {**self.accelerator.options, **more}
        return Provider(
            name=self.accelerator.name,
            options=options,
            threads_option=self.accelerator.threads_option,
            memory_pattern=self.accelerator.memory_pattern,
        )

    def wrapped(self, session: Any, threads: int | None, *, folds_weights: bool) -> AcceleratedSession:
        wanted = self.accelerator.name
        if session.get_providers()[0] != wanted:
            raise DeviceUnavailable(
                f"ONNX Runtime has {wanted}, but could not start it, and would have run on "
                f"{session.get_providers()[0]} instead.",
                hint="its device, driver or libraries are missing; ONNX Runtime's log on standard error says which",
            )
        opened = AcceleratedSession(session, threads, folds_weights=folds_weights, runtime=self.name)
        opened._assignment = assignment(session, wanted)
        if opened._assignment is not None and not opened._assignment.nodes.get(wanted):
            total = sum(opened._assignment.nodes.values())
            raise DeviceUnavailable(
                f"{wanted} took none of the {total} nodes of the graph: all of them would run on {CPU_PROVIDER.name}.",
                hint="its documentation lists the operators and types that it takes; onnxruntime runs the graph",
            )
        return opened


def assignment(session: Any, wanted: str) -> Assignment | None:
    """The providers of the nodes of a session that was opened to record them; None where the library cannot tell."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return None
    nodes: Counter[str] = Counter()
    fell_back = []
    for part in session.get_provider_graph_assignment_info():
        for node in part.get_nodes():
            nodes[part.ep_name] += 1
            if part.ep_name != wanted:
                fell_back.append(f"{node.op_type} {node.name}".strip())
    return Assignment(nodes=dict(nodes), fell_back=tuple(fell_back))


CUDA, TENSORRT, QNN, NNAPI, COREML, XNNPACK, DIRECTML, OPENVINO = map(AcceleratedOnnxRuntime, ACCELERATORS)
