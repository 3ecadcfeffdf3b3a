"""Draws the graph of a benchmark: the engines of one model, what each answers in each runtime, and their latencies."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.graph import Graph, Node
from edgekd.data.dataset import Dataset
from edgekd.errors import UserError
from edgekd.export.convert import CONVERTERS
from edgekd.pipeline.benchmark.request import BenchmarkRequest
from edgekd.pipeline.draft import Draft
from edgekd.pipeline.engines import SAMPLES, SHORT, best_opset, sampling
from edgekd.pipeline.request import SYNTHETIC
from edgekd.pipeline.situation import saturates
from edgekd.profiling.answers_stage import version_of
from edgekd.runtimes.engines.settings import INT8, INT8_FP16
from edgekd.runtimes.session import RUNTIMES, Availability
from edgekd.targets.schema import QuantScheme, Target

MODEL = "model"
LONGEST_NAME = 64
"""Of a node."""
FP32, FP16, PYTORCH = "fp32", "fp16", "pytorch"
TORCH, ONNXRUNTIME, TENSORRT = "torch", "onnxruntime", "tensorrt"
PROFILE = "profile"
USUAL_SCHEMES: Mapping[str, QuantScheme] = {
    "onnxruntime": "ort-u8s8",
    "openvino": "openvino",
    "tensorrt": "tensorrt-s8",
}
"""Forms of INT8 by runtime where the target's card does not name one."""
BUILT = ("fp32", "fp16", "int8-trt", "int8-trt-fp16")
"""Graphs that TensorRT builds its engines from."""
COMMON_SCHEME: QuantScheme = "ort-u8s8"
"""The form that every runtime of ONNX graphs is tried with; the others run in the runtime they are made for."""


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """An engine and the runtimes that it is tried in.

    Attributes:
        node: That makes it, or `@model` for the model itself.
        name: In the table.
    """

    node: str
    name: str
    precision: str
    scheme: str
    runtimes: tuple[str, ...]

    def answers(self, runtime: str) -> str:
        """The node that answers with it."""
        return re.sub(r"[^a-z0-9_-]+", "-", f"answers-{self.name}-{runtime}".lower())[:LONGEST_NAME]


@dataclass(frozen=True, kw_only=True)
class Absent:
    """A runtime that is tried in nothing, and why; `installable` where an installation would change that."""

    runtime: str
    reason: str
    installable: bool


@dataclass(frozen=True, kw_only=True)
class Contest:
    """What is compared.

    Attributes:
        graph: Of everything but the latencies, in an order in which it can run.
        contestants: The engines.
        absent: Runtimes without an engine.
        reference: The contestant and runtime that answers are compared with.
        decisions: What was left out or assumed.
    """

    graph: Graph
    contestants: tuple[Contestant, ...]
    absent: tuple[Absent, ...]
    reference: tuple[Contestant, str] | None
    decisions: tuple[str, ...]


class _Drawing:
    """The graph while it is drawn."""

    def __init__(
        self,
        request: BenchmarkRequest,
        given: Mapping[str, ModelBundle],
        dataset: Dataset | None,
        target: Target,
        usable: list[str],
    ) -> None:
        self.request, self.given, self.dataset, self.target, self.usable = request, given, dataset, target, usable
        self.model = next(iter(given.values()))
        self.draft = Draft()
        self.found: list[Contestant] = []
        self.samples: str | None = None

    @property
    def of_graphs(self) -> tuple[str, ...]:
        """Runtimes at hand that open ONNX graphs as they are."""
        return tuple(name for name in self.usable if BundleKind.ONNX in RUNTIMES.get(name).accepts)

    def engines(self) -> None:
        """Everything of one model."""
        if len(self.given) > 1 or self.model.kind is BundleKind.ENGINE or _precision(self.model) != FP32:
            self._as_they_are()
            return
        self._draw_samples()
        self._draw_floats()
        if "int8" in self.request.precisions:
            self._draw_int8()
        self._draw_converted()

    def _as_they_are(self) -> None:
        """Finished engines: nothing is made of them."""
        names = ", ".join(self.given)
        self.draft.say(f"Measured as they are, and not built anew, are the finished engines of this model: {names}.")
        for name, bundle in self.given.items():
            fitting = tuple(runtime for runtime in self.usable if RUNTIMES.get(runtime).takes(bundle))
            self._add(f"@{name}", name, _precision(bundle), str(bundle.tags.get("scheme", "")), fitting)

    def _draw_samples(self) -> None:
        if self.request.data == SYNTHETIC:
            if self.model.kind is not BundleKind.TORCH:
                raise UserError(
                    "Images are made from the BatchNorm statistics of a PyTorch model, and this is a graph.",
                    hint="--data FOLDER_OR_NPZ, labelled or not",
                )
            config: dict[str, JsonValue] = (
                {} if self.request.calib_samples is None else {"samples": self.request.calib_samples}
            )
            self.samples = self.draft.add(SAMPLES, "synthetic-samples", config, {"model": f"@{MODEL}"})
        elif self.dataset is not None:
            config = sampling(self.dataset, self.request.calib_samples)
            self.samples = self.draft.add(SAMPLES, "calibration", config, {"model": f"@{MODEL}"})

    def _draw_floats(self) -> None:
        """The FP32 graph, always, because everything is made from it and compared with it; the FP16 one if asked."""
        if self.model.kind is BundleKind.TORCH:
            ports = {"model": f"@{MODEL}", "samples": self.samples}
            self.draft.add(FP32, "export", {"opset": best_opset(self.target), "atol": 1e-3, "rtol": 1e-3}, ports)
        else:
            self.draft.add(FP32, "conform", {}, {"model": f"@{MODEL}"})
        self._add(FP32, FP32, FP32, "", self.of_graphs)
        if FP16 in self.request.precisions:
            self.draft.add(FP16, "fp16", {}, {"model": FP32, "samples": self.samples})
            self._add(FP16, FP16, FP16, "", self.of_graphs)
        if self.model.kind is BundleKind.TORCH and TORCH in self.usable:
            self._add(f"@{MODEL}", PYTORCH, FP32, "", (TORCH,))

    def _draw_int8(self) -> None:
        if self.samples is None:
            self.draft.say(
                "No data was given: INT8 keeps its activations in float (weight-only), and answers are compared on "
                "noise. Images calibrate INT8 and judge accuracy: --data FOLDER_OR_NPZ, labelled or not."
            )
            name = self.draft.add("int8-weights", "quantize", {"scheme": "weight-only"}, {"model": FP32})
            self._add(name, name, "int8", "weight-only", self.of_graphs)
            return
        schemes: dict[QuantScheme, list[str]] = {}
        for runtime in (*self.of_graphs, *([TENSORRT] if TENSORRT in self.usable else [])):
            scheme = self.target.scheme_for(runtime) or USUAL_SCHEMES.get(runtime, COMMON_SCHEME)
            schemes.setdefault(scheme, []).append(runtime)
        for scheme, runtimes in schemes.items():
            config: dict[str, JsonValue] = {
                "scheme": scheme,
                "calib_method": self.request.calib_method,
                "reduce_range": saturates(self.target),
            }
            if self.dataset is not None and self.dataset.labelled and classifies(self.model):
                config |= {"max_drop": self.request.max_drop, "drop_type": "absolute"}
            ports = {"model": FP32, "calibration": self.samples}
            name = self.draft.add(f"int8-{SHORT[scheme]}", "quantize", config, ports)
            tried = self.of_graphs if scheme == COMMON_SCHEME else [n for n in runtimes if n in self.of_graphs]
            self._add(name, name, "int8", scheme, tuple(tried))
            if scheme == INT8:
                half = self.draft.add(f"{name}-fp16", "int8-fp16", {}, {"model": name, "samples": self.samples})
                self._add(half, half, "int8", INT8_FP16, ())

    def _draw_converted(self) -> None:
        """Engines of the runtimes that open files of their own."""
        for c in [c for c in self.found if c.name in BUILT] if TENSORRT in self.usable else []:
            node = self.draft.add(f"{c.name}-engine", "build", {}, {"model": c.node})
            self._add(node, node, c.precision, c.scheme, (TENSORRT,))
        for name in CONVERTERS:
            converter = CONVERTERS.get(name)
            if name not in self.usable or not converter.availability().ok:
                continue
            source = FP32 if converter.takes is BundleKind.ONNX else f"@{MODEL}"
            if converter.takes is not BundleKind.ONNX and self.model.kind is not converter.takes:
                continue
            for precision in converter.precisions:
                if precision not in self.request.precisions and precision != FP32:
                    continue
                if precision in converter.calibrated and self.samples is None:
                    continue
                ports = {"model": source, "samples": self.samples}
                node = self.draft.add(f"{name}-{precision}", "convert", {"to": name, "precision": precision}, ports)
                self._add(node, node, precision, name if precision == "int8" else "", (name,))

    def _add(self, node: str, name: str, precision: str, scheme: str, runtimes: tuple[str, ...]) -> None:
        self.found.append(Contestant(node=node, name=name, precision=precision, scheme=scheme, runtimes=runtimes))

    def answers(self) -> tuple[Contestant, str] | None:
        """Adds a node for each engine in each runtime; the reference's comes first, and the others are fed with it."""
        self.found = [contestant for contestant in self.found if contestant.runtimes]
        first = next((c for c in self.found if c.precision == FP32), self.found[0] if self.found else None)
        if first is None:
            return None
        where = ONNXRUNTIME if ONNXRUNTIME in first.runtimes else first.runtimes[0]
        kept = self._answer(first, where, None)
        for contestant in self.found:
            for runtime in contestant.runtimes:
                if (contestant, runtime) != (first, where):
                    self._answer(contestant, runtime, kept)
        return first, where

    def _answer(self, contestant: Contestant, runtime: str, reference: str | None) -> str:
        config: dict[str, JsonValue] = {
            "candidate": contestant.name,
            "runtime": runtime,
            "threads": self.request.threads[0],
            "images": self.request.images,
            "dataset": self.dataset is not None,
            "keep": reference is None,
            "version": version_of(runtime),
            "limit_s": self.request.limit_s,
        }
        ports = {"model": contestant.node, "samples": self.samples, "reference": reference}
        return self.draft.add(contestant.answers(runtime), "answers", config, ports)


def contest_of(
    request: BenchmarkRequest, given: Mapping[str, ModelBundle], dataset: Dataset | None, target: Target
) -> Contest:
    """The graph that answers a request about an opened model.

    Args:
        request: What was asked.
        given: The model, TORCH or ONNX, from which engines are made; or finished engines of one model by name.
        dataset: None without data; its labels are numbered as the model's logits.
        target: This machine.

    Raises:
        UserError: A runtime that no edgekd knows, or data that the model cannot use.
    """
    model = next(iter(given.values()))
    # PyTorch is a reference for its own models; nobody looks for it beside a graph.
    wanted = request.runtimes or tuple(name for name in RUNTIMES if name != TORCH or model.kind is BundleKind.TORCH)
    states = {name: RUNTIMES.get(name).availability() for name in wanted}
    drawing = _Drawing(request, given, dataset, target, [name for name, state in states.items() if state.ok])
    drawing.engines()
    reference = drawing.answers()
    graph = Graph(inputs={name: bundle.kind for name, bundle in given.items()}, nodes=_ordered(drawing.draft.nodes))
    return Contest(
        graph=graph,
        contestants=tuple(drawing.found),
        absent=tuple(_absent(name, state, drawing) for name, state in states.items() if not _tried(name, drawing)),
        reference=reference,
        decisions=tuple(drawing.draft.decisions),
    )


def _precision(bundle: ModelBundle) -> str:
    return str(bundle.tags.get("precision", FP32))


def classifies(model: ModelBundle) -> bool:
    """Whether the model gives logits (N, K), as far as its outputs tell."""
    return len(model.outputs) == 1 and len(model.outputs[0].shape) == 2


def _tried(runtime: str, drawing: _Drawing) -> bool:
    return any(runtime in contestant.runtimes for contestant in drawing.found)


def _absent(runtime: str, state: Availability, drawing: _Drawing) -> Absent:
    """Why a runtime has no row with numbers."""
    if not state.ok:
        how = f" ({state.install})" if state.install else ""
        return Absent(runtime=runtime, reason=f"{state.reason}{how}", installable=bool(state.install))
    if runtime in CONVERTERS:
        found = CONVERTERS.get(runtime).availability()
        if not found.ok:
            how = f" ({found.install})" if found.install else ""
            return Absent(
                runtime=runtime,
                reason=f"its converter is missing: {found.reason}{how}",
                installable=bool(found.install),
            )
    kind = str(drawing.model.kind)
    reason = f"it runs nothing that can be made here from a model that comes as {kind.upper()}"
    return Absent(runtime=runtime, reason=reason, installable=False)


def _ordered(nodes: list[Node]) -> tuple[Node, ...]:
    """Engines first, then answers: what can fail early fails before an hour of answering."""
    return tuple(sorted(nodes, key=lambda node: node.stage == "answers"))
