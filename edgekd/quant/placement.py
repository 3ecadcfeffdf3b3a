"""Which nodes of a network are quantized, by family of network and form of INT8.

The lint (`edgekd.lint`) says what is wrong with a placement; here stands what was learned from it. A quantizer's own
choice of operators is the preset `all`; `linear` quantizes layers with weights and nothing else.
"""

from __future__ import annotations

from typing import Literal

import onnx

from edgekd.lint.family import Family, family_of
from edgekd.lint.view import LintGraph
from edgekd.quant.layers import GraphView, drop_unused_

Placement = Literal["auto", "all", "linear"]
NORMALISED: tuple[Family, ...] = ("transformer", "convnext")
"""Families whose residual stream is normalised layer by layer: it has outliers, and stays in float."""


def is_linear(full: onnx.ModelProto, placement: Placement) -> bool:
    """Whether only layers with weights are quantized.

    Args:
        full: The FP32 graph.
        placement: As it was asked for; `auto` decides by family.
    """
    return placement == "linear" or (placement == "auto" and family_of(full) in NORMALISED)


def attention_products(full: onnx.ModelProto) -> frozenset[str]:
    """Names of the matrix products whose two operands depend on the image."""
    return frozenset(node.name for node in LintGraph(full).products)


def without_branch_rounding_(model: onnx.ModelProto) -> None:
    """Lets the convolution before a residual Add reach it unrounded, in place; the shortcut stays on 8-bit levels.

    TensorRT then adds the shortcut inside the convolution's kernel. ModelOpt and NVIDIA's quantization toolkit for
    TensorFlow place their quantizers so. Where both sides are convolutions, as where a stage begins, the deeper one is
    the branch: its input was computed later.
    """
    view = GraphView(model)
    place = {node.name: index for index, node in enumerate(model.graph.node)}
    for node in model.graph.node:
        if node.op_type != "Add":
            continue
        branches = [_rounded_branch(view, name) for name in node.input]
        if len(branches) != 2 or not all(_is_rounded(view, name) for name in node.input):
            continue
        depths = [-1 if layer is None else _depth(view, layer, place) for layer in branches]
        branch = branches[0 if depths[0] >= depths[1] else 1]
        if branch is not None:
            node.input[0 if branch is branches[0] else 1] = branch.output[0]
    drop_unused_(model)


def with_float_stream_(model: onnx.ModelProto) -> None:
    """Lets additions read the residual stream as it is, in place, where a layer beside them reads it rounded.

    ONNX Runtime's quantizer gives all readers of a value its rounded form. What a convolution wrote stays rounded: its
    8-bit kernel has no other output.
    """
    view = GraphView(model)
    for node in model.graph.node:
        for slot, name in enumerate(node.input if node.op_type == "Add" else ()):
            dequantize = view.maker.get(name)
            quantize = view.maker.get(dequantize.input[0]) if dequantize is not None else None
            if quantize is None or quantize.op_type != "QuantizeLinear" or quantize.input[0] in view.constants:
                continue
            maker = view.maker.get(quantize.input[0])
            if maker is None or maker.op_type not in ("Conv", "ConvTranspose"):
                node.input[slot] = quantize.input[0]
    drop_unused_(model)


def _is_rounded(view: GraphView, value: str) -> bool:
    maker = view.maker.get(value)
    return maker is not None and maker.op_type == "DequantizeLinear"


def _rounded_branch(view: GraphView, value: str) -> onnx.NodeProto | None:
    """The convolution or product that reaches a value through one Q/DQ pair and nothing else."""
    for kind in ("DequantizeLinear", "QuantizeLinear"):
        maker = view.maker.get(value)
        if maker is None or maker.op_type != kind or len(view.readers.get(value, [])) != 1 or view.leaves(value):
            return None
        value = maker.input[0]
    maker = view.maker.get(value)
    alone = len(view.readers.get(value, [])) == 1 and not view.leaves(value)
    return maker if alone and maker is not None and maker.op_type in ("Conv", "ConvTranspose", "Gemm") else None


def _depth(view: GraphView, layer: onnx.NodeProto, place: dict[str, int]) -> int:
    """Where in the graph the layer's input was computed, Q/DQ passed over."""
    maker = view.maker.get(layer.input[0])
    while maker is not None and maker.op_type in ("QuantizeLinear", "DequantizeLinear"):
        maker = view.maker.get(maker.input[0])
    return -1 if maker is None else place[maker.name]
