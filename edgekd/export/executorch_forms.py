"""Writes a traced program in operators that XNNPACK takes, and places its quantizers behind activation functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

_ATEN = torch.ops.aten
_LAYERS = (_ATEN.conv2d.default, _ATEN.linear.default)


def as_xnnpack_takes_it(program: ExportedProgram) -> ExportedProgram:
    """The same function in other operators.

    - Attention without a mask is two products and a softmax: the general decomposition guards against rows that a mask
      leaves empty, with comparisons that no delegate takes and that cost more than the attention itself.
    - A mean over height and width keeps these axes, and a reshape drops them: the other form runs in a portable kernel
      and cuts the program in two.
    - ReLU6 and a clamp between two numbers are `hardtanh`, the one form that is fused with the layer before it.
    """
    forms: dict[Any, Callable[..., Any]] = {
        _ATEN.scaled_dot_product_attention.default: plain_attention,
        _ATEN.mean.dim: _mean,
        _ATEN.relu6.default: lambda x: _ATEN.hardtanh.default(x, 0.0, 6.0),
        _ATEN.clamp.default: _clamp,
    }
    present = {node.target for node in program.graph.nodes} & set(forms)
    return program.run_decompositions({target: forms[target] for target in present}) if present else program


def plain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(q k^T scale) v, all (..., T, D); what only training, masks and grouped heads need is left as it is."""
    if attn_mask is not None or is_causal or enable_gqa:
        return NotImplemented  # type: ignore[no-any-return]  # so that torch decomposes it in its own way
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    return torch.softmax((query * factor) @ key.transpose(-2, -1), dim=-1) @ value


def _mean(x: Tensor, dim: list[int] | None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    spatial = x.ndim == 4 and dim is not None and sorted(axis % 4 for axis in dim) == [2, 3]
    if keepdim or not spatial or dtype is not None:
        return NotImplemented  # type: ignore[no-any-return]
    return torch.mean(x, (2, 3), keepdim=True).reshape(x.shape[0], x.shape[1])


def _clamp(x: Tensor, min: float | None = None, max: float | None = None) -> Tensor:  # named as the operator has them
    if min is None or max is None or not x.is_floating_point():
        return NotImplemented  # type: ignore[no-any-return]
    return _ATEN.hardtanh.default(x, float(min), float(max))  # type: ignore[no-any-return]


def xnnpack_quantizer() -> Any:
    """XNNPACK's quantizer, int8 with symmetric weights per channel, which also rounds behind a clamp and not before it.

    By itself it does so behind ReLU alone. Before a ReLU6 the range is that of values that are cut off next, often
    several times as wide, and the levels inside of it are few: MobileNetV2 had 10 dB of signal to noise on ImageNet
    images so, and has 23 dB with the clamp taken into the layer, as XNNPACK computes it anyway.
    """
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )

    config = get_symmetric_quantization_config(is_per_channel=True)

    class BehindClamps(XNNPACKQuantizer):  # type: ignore[misc]
        def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
            for node in model.graph.nodes:
                if node.target in (_ATEN.hardtanh.default, _ATEN.hardtanh_.default):
                    _annotate_clamped_(node, config)
            return super().annotate(model)  # type: ignore[no-any-return]

    return BehindClamps().set_global(config)


def _annotate_clamped_(clamp: fx.Node, config: Any) -> None:
    """Says of a layer and the clamp that alone reads it: round what goes in, and what the clamp gives."""
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation
    from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

    layer = clamp.args[0]
    if not isinstance(layer, fx.Node) or layer.target not in _LAYERS or len(layer.users) > 1:
        return
    taken = [part for part in layer.args[:3] if isinstance(part, fx.Node)]
    specs = (config.input_activation, config.weight, config.bias)
    annotations = {part: QuantizationAnnotation(_annotated=True) for part in taken[1:]}
    annotations[layer] = QuantizationAnnotation(input_qspec_map=dict(zip(taken, specs, strict=False)), _annotated=True)
    annotations[clamp] = QuantizationAnnotation(output_qspec=config.output_activation, _annotated=True)
    for node, annotation in annotations.items():
        node.meta[Q_ANNOTATION_KEY] = annotation
