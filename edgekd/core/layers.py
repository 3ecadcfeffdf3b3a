"""Times of the layers inside an engine as plain data: which ran in 8 bits, which stayed in float, and where.

A runtime that records its layers runs slower while it does, and fuses as it always does: the times say how a latency
is shared out, not how long it is, and a layer may stand for several operators of the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from edgekd.core.schema import Schema

Arithmetic = Literal["int8", "float", "conversion", "other"]
"""What a layer computes in; `conversion` changes type or memory layout, `other` handles shapes and indices."""
_HEAVY_ONNX = ("Conv", "ConvTranspose", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")
_HEAVY_OPENVINO = ("Convolution", "GroupConvolution", "Deconvolution", "FullyConnected")
_HEAVY_TENSORRT = ("MatrixMultiply", "CaskConvolution", "CaskGemmConvolution", "CaskGemmMatrixMultiply", "conv", "gemm")
_HEAVY_XNNPACK = ("Deconvolution", "Fully Connected", "Batch Matrix Multiply")
HEAVY = frozenset((*_HEAVY_ONNX, *_HEAVY_OPENVINO, *_HEAVY_TENSORRT, *_HEAVY_XNNPACK))
"""Operators that quantization is for; one of them in float inside a quantized graph has fallen back."""


class LayerTime(Schema):
    """One layer of an engine.

    Attributes:
        name: As the runtime names it.
        op: Its operator, in the runtime's words.
        provider: Execution provider or device that ran it.
        arithmetic: What it computed in.
        kernel: Implementation, where the runtime tells.
        median_ms: Median over the recorded calls: other work on the machine inflates a mean.
    """

    name: str
    op: str
    provider: str
    arithmetic: Arithmetic
    kernel: str = ""
    median_ms: float = Field(ge=0)


class LayerKind(Schema):
    """All layers of one operator that computed in the same arithmetic.

    Attributes:
        count: How many they are.
        total_ms: Sum of their medians.
    """

    op: str
    arithmetic: Arithmetic
    count: int = Field(ge=1)
    total_ms: float = Field(ge=0)


class LayerReport(Schema):
    """The layers of one engine, in the order they ran.

    Attributes:
        calls: Recorded calls that the medians are over.
        total_ms: Sum of the layers; more than the latency, because recording costs time.
        share_by_arithmetic: Share of `total_ms`, in [0, 1].
        nodes_by_provider: Number of layers that each provider ran.
        fell_back: Layers that did not run as asked, each with the reason.
        kinds: Counts and times by operator and arithmetic, the slowest first; kept where `layers` are not. Empty in
            reports of earlier versions.
        float_between: Layers in float that ran after the first and before the last one in int8: each is an island that
            values leave and enter int8 for.
        named_kernels: Convolutions and matrix products whose kernel the runtime names.
        sparse_kernels: Those of them whose kernel's name says that it is for N:M sparsity.
    """

    source: str
    calls: int
    total_ms: float
    share_by_arithmetic: dict[Arithmetic, float]
    nodes_by_provider: dict[str, int]
    fell_back: tuple[str, ...] = ()
    kinds: tuple[LayerKind, ...] = ()
    float_between: int = 0
    named_kernels: int = 0
    sparse_kernels: int = 0
    layers: tuple[LayerTime, ...] = ()


def layer_report(
    layers: Sequence[LayerTime], *, source: str, calls: int, provider: str, quantized: bool
) -> LayerReport:
    """The layers with their shares and with what fell back.

    Args:
        layers: In the order they ran.
        source: Where the times come from, in words.
        calls: That the medians are over.
        provider: The one that was asked for; layers elsewhere have fallen back.
        quantized: The engine was meant to compute in int8.
    """
    total = sum(layer.median_ms for layer in layers)
    shares: dict[Arithmetic, float] = {}
    nodes: dict[str, int] = {}
    for layer in layers:
        shares[layer.arithmetic] = shares.get(layer.arithmetic, 0.0) + (layer.median_ms / total if total else 0.0)
        nodes[layer.provider] = nodes.get(layer.provider, 0) + 1
    fell = [f"{n.name} ({n.op}) ran on {n.provider}, not on {provider}" for n in layers if n.provider != provider]
    if quantized:
        stayed = (layer for layer in layers if layer.op in HEAVY and layer.arithmetic == "float")
        fell += [f"{n.name} ({n.op}) computed in float: {n.median_ms / total if total else 0:.0%}" for n in stayed]
    kernels = [layer.kernel.lower() for layer in layers if layer.op in HEAVY and layer.kernel]
    return LayerReport(
        source=source,
        calls=calls,
        total_ms=total,
        share_by_arithmetic=shares,
        nodes_by_provider=nodes,
        fell_back=tuple(fell),
        kinds=_kinds(layers),
        float_between=_float_between(layers),
        named_kernels=len(kernels),
        sparse_kernels=sum("sparse" in kernel for kernel in kernels),
        layers=tuple(layers),
    )


def _kinds(layers: Sequence[LayerTime]) -> tuple[LayerKind, ...]:
    grouped: dict[tuple[str, Arithmetic], list[float]] = {}
    for layer in layers:
        grouped.setdefault((layer.op, layer.arithmetic), []).append(layer.median_ms)
    found = [
        LayerKind(op=op, arithmetic=arithmetic, count=len(times), total_ms=sum(times))
        for (op, arithmetic), times in grouped.items()
    ]
    return tuple(sorted(found, key=lambda kind: (-kind.total_ms, kind.op)))


def _float_between(layers: Sequence[LayerTime]) -> int:
    places = [place for place, layer in enumerate(layers) if layer.arithmetic == "int8"]
    if not places:
        return 0
    return sum(layer.arithmetic == "float" for layer in layers[places[0] : places[-1]])
