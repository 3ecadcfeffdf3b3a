"""Rules that ask a runtime: what it refuses, and what it leaves in float after its own optimisation of the graph.

They speak for the version that is installed here; which kernels a device has is not seen. A runtime that is not
installed is not asked, which the report says.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import onnx

from edgekd.errors import BuildFailed, UserError
from edgekd.lint.finding import Finding, Severity
from edgekd.lint.rule import Rule, Surroundings
from edgekd.lint.view import HEAVY, LintGraph
from edgekd.runtimes.onnxruntime import optimised_graph
from edgekd.runtimes.openvino import executed_layers
from edgekd.runtimes.session import RUNTIMES

ASKED = ("onnxruntime", "openvino")
"""Runtimes that these rules know how to ask."""


class Refused(Rule):
    """A runtime that does not open the graph: an opset, an operator or a type without a kernel."""

    name: ClassVar[str] = "refused"
    severity: ClassVar[Severity] = "error"
    runtimes: ClassVar[frozenset[str]] = frozenset(ASKED)
    summary: ClassVar[str] = "graphs that the installed runtime does not open"
    why: ClassVar[str] = "It cannot run there."
    fix: ClassVar[str] = "Export with a lower --opset, or replace the operator that the message names."
    measures: ClassVar[bool] = True

    def findings(self, graph: LintGraph, where: Surroundings) -> Iterator[Finding]:
        with tempfile.TemporaryDirectory(prefix="edgekd-") as folder:
            path = Path(folder) / "model.onnx"
            path.write_bytes(graph.model.SerializeToString())
            for name in self.concerned(where):
                found = RUNTIMES.get(name).availability()
                if not found.ok:
                    continue
                try:
                    RUNTIMES.get(name).open(path).__exit__(None, None, None)
                except (UserError, BuildFailed) as err:
                    node = _named_in(graph, err.message)
                    measured = f"{name} {found.version}"
                    yield self.finding(where, node, _short(err.message), runtimes=(name,), measured=measured)


class OnnxRuntimeFloat(Rule):
    """Layers that were quantized and that ONNX Runtime computes in float all the same."""

    name: ClassVar[str] = "onnxruntime-float"
    severity: ClassVar[Severity] = "warning"
    runtimes: ClassVar[frozenset[str]] = frozenset({"onnxruntime"})
    summary: ClassVar[str] = "quantized layers that ONNX Runtime's own optimisation leaves in float"
    why: ClassVar[str] = "Its 8-bit operands are dequantized on every run and multiplied in float."
    fix: ClassVar[str] = "Quantize its output too, per tensor and unsigned; see the other findings on this node."
    measures: ClassVar[bool] = True

    def findings(self, graph: LintGraph, where: Surroundings) -> Iterator[Finding]:
        found = RUNTIMES.get("onnxruntime").availability()
        meant = {node.output[0]: node for node in graph.model.graph.node if graph.in_int8(node)}
        if not found.ok or not meant:
            return
        try:
            optimised = optimised_graph(graph.model)
        except (UserError, BuildFailed):
            return  # `refused` says so
        makers = {name: node for node in optimised.graph.node for name in node.output}
        for node in optimised.graph.node:
            if node.op_type.removeprefix("Fused") not in HEAVY:
                continue
            layer = next((meant[name] for name in (node.output[0], *_unfused(node)) if name in meant), None)
            layer = layer or next((entry for entry in meant.values() if entry.name == node.name), None)
            if layer is None:
                continue
            kinds = [makers[name].op_type if name in makers else "a constant" for name in node.input[:2]]
            text = f"it runs as {node.op_type}, reading {' and '.join(kinds)}"
            measured = f"onnxruntime {found.version}"
            yield self.finding(where, layer, text, macs_share=graph.share(layer.name), measured=measured)


class OpenVinoFloat(Rule):
    """Layers that were quantized and that OpenVINO's CPU plugin computes in float all the same."""

    name: ClassVar[str] = "openvino-float"
    severity: ClassVar[Severity] = "warning"
    runtimes: ClassVar[frozenset[str]] = frozenset({"openvino"})
    summary: ClassVar[str] = "quantized layers that OpenVINO's compiled model computes in float"
    why: ClassVar[str] = "Its 8-bit operands are dequantized on every run and multiplied in float."
    fix: ClassVar[str] = "Quantize both operands per tensor, as edgekd quantize --scheme openvino does."
    measures: ClassVar[bool] = True

    def findings(self, graph: LintGraph, where: Surroundings) -> Iterator[Finding]:
        found = RUNTIMES.get("openvino").availability()
        meant = {node.name: node for node in graph.model.graph.node if graph.in_int8(node)}
        if not found.ok or not meant:
            return
        with tempfile.TemporaryDirectory(prefix="edgekd-") as folder:
            path = Path(folder) / "model.onnx"
            path.write_bytes(graph.model.SerializeToString())
            try:
                layers = executed_layers(path)
            except (UserError, BuildFailed):
                return  # `refused` says so
        for layer in layers:
            names = [name for name in layer.originals if name in meant]
            if layer.precision in ("i8", "u8") or not layer.heavy or not names:
                continue
            node = meant[names[0]]
            text = f"it runs as {layer.kind} in {layer.precision} ({layer.kernel})"
            measured = f"openvino {found.version}"
            yield self.finding(where, node, text, macs_share=graph.share(node.name), measured=measured)


def _unfused(node: onnx.NodeProto) -> list[str]:
    """Names that a fused node may have had before: ONNX Runtime appends to the name of what it fuses."""
    return [node.name.split("_nchwc")[0]]


def _named_in(graph: LintGraph, message: str) -> onnx.NodeProto | None:
    """The node that a runtime's message names, the longest name first."""
    names = sorted((name for name in graph.nodes if name and name in message), key=len, reverse=True)
    return graph.nodes[names[0]] if names else None


def _short(message: str) -> str:
    """The message on one line, without the path of a file that is gone."""
    line = " ".join(message.split())
    return line if len(line) <= 400 else f"{line[:400]}..."
