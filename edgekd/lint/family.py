"""Which family a network is of, read from its graph: what to quantize in it differs by family."""

from __future__ import annotations

from typing import Literal

import onnx

from edgekd.lint.view import LintGraph
from edgekd.runtimes.onnx_view import attribute

Family = Literal["cnn", "depthwise", "convnext", "transformer", "mlp"]
"""`cnn`: convolutions; `depthwise`: most of the spatial ones are depthwise; `convnext`: depthwise ones with layer
normalisation, as ConvNeXt; `transformer`: attention; `mlp`: no convolution and no attention."""
DEPTHWISE_SHARE = 0.5
"""Of the convolutions larger than 1x1, from which a network counts as depthwise."""


def family_of(model: onnx.ModelProto) -> Family:
    """The family of a graph, quantized or not."""
    return family_of_graph(LintGraph(model))


def family_of_graph(graph: LintGraph) -> Family:
    """The same of a graph that is at hand."""
    ops = {node.op_type for node in graph.model.graph.node}
    if "Attention" in ops or ("Softmax" in ops and graph.products):
        return "transformer"
    convolutions = [node for node in graph.layers if node.op_type in ("Conv", "ConvTranspose")]
    if not convolutions:
        return "mlp"
    spatial = [node for node in convolutions if max(graph.shapes.get(node.input[1], (1,))[2:], default=1) > 1]
    depthwise = [node for node in spatial if _is_depthwise(graph, node)]
    if len(depthwise) < DEPTHWISE_SHARE * max(len(spatial), 1):
        return "cnn"
    return "convnext" if "LayerNormalization" in ops else "depthwise"


def _is_depthwise(graph: LintGraph, node: onnx.NodeProto) -> bool:
    groups = int(attribute(node, "group", 1))
    weight = graph.shapes.get(node.input[1], ())
    return groups > 1 and len(weight) > 1 and weight[1] == 1
