"""Rules on what 8 bits spoil: normalisations, softmax, attention, logits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from edgekd.lint.finding import Finding, Severity
from edgekd.lint.rule import Rule, Surroundings
from edgekd.lint.view import LintGraph

SENSITIVE = frozenset(
    {"Softmax", "LogSoftmax", "LayerNormalization", "GroupNormalization", "RMSNormalization", "Gelu", "Erf", "Exp"}
)


class SensitiveQuantized(Rule):
    """Q/DQ before softmax, normalisation or GELU, and before the products of attention.

    NVIDIA's ModelOpt leaves all of these in float for TensorRT: Q/DQ inside attention or inside the subgraph of a
    LayerNormalization keep it from the fused kernel.
    """

    name: ClassVar[str] = "sensitive-quantized"
    severity: ClassVar[Severity] = "warning"
    runtimes: ClassVar[frozenset[str]] = frozenset({"tensorrt", "onnxruntime"})
    summary: ClassVar[str] = "Q/DQ before softmax, normalisation, GELU or the products of attention"
    why: ClassVar[str] = "It has no 8-bit kernel or is fused in float, and outliers there leave few levels to the rest."
    fix: ClassVar[str] = "Quantize Conv and Linear layers only (edgekd quantize, placement=linear)."

    def findings(self, graph: LintGraph, where: Surroundings) -> Iterator[Finding]:
        products = {node.name for node in graph.products}
        for node in graph.model.graph.node:
            rounded = [name for name in graph.moving(node) if graph.dequantized_by(name) is not None]
            if not rounded:
                continue
            if node.op_type in SENSITIVE:
                # ONNX Runtime's 8-bit convolutions have no float output: what reads them reads rounded values.
                forced = all(_of_convolution(graph, name) for name in rounded)
                asked = tuple(name for name in self.concerned(where) if name != "onnxruntime" or not forced)
                if asked:
                    yield self.finding(where, node, f"it reads 8-bit values: {', '.join(rounded)}", runtimes=asked)
            elif node.name in products and "tensorrt" in where.runtimes:
                found = f"{len(rounded)} of its 2 inputs are quantized; both depend on the image"
                yield self.finding(where, node, found, runtimes=("tensorrt",), macs_share=graph.share(node.name))


def _of_convolution(graph: LintGraph, value: str) -> bool:
    dequantize = graph.dequantized_by(value)
    quantize = graph.maker.get(dequantize.input[0]) if dequantize is not None else None
    maker = graph.before_activation(quantize.input[0]) if quantize is not None else None
    return maker is not None and maker.op_type == "Conv"


class OutputQuantized(Rule):
    """An output of the graph that is rounded to 8 bits last."""

    name: ClassVar[str] = "output-quantized"
    severity: ClassVar[Severity] = "info"
    summary: ClassVar[str] = "outputs of the graph that are rounded to 8 bits"
    why: ClassVar[str] = "Logits come on 256 levels, so near ones tie, and two more nodes run."
    fix: ClassVar[str] = "Leave the last Q/DQ pair out where the runtime's last layer can write float."

    def findings(self, graph: LintGraph, where: Surroundings) -> Iterator[Finding]:
        for name in sorted(graph.outputs):
            dequantize = graph.maker.get(name)
            if dequantize is not None and dequantize.op_type == "DequantizeLinear" and not graph.is_constant(name):
                severity: Severity = "warning" if "tensorrt" in where.runtimes else "info"
                yield self.finding(where, dequantize, f"the output {name!r} is on 8-bit levels", severity=severity)
