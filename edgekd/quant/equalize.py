"""Cross-layer equalisation: the channels of neighbouring layers get like ranges, and the network computes the same.

A ReLU lets a positive factor through, so channel i of one layer may be divided by s_i where the next layer multiplies
it back (Nagel et al. 2019, arXiv 1906.04721):

    W1_i <- W1_i / s_i,   b1_i <- b1_i / s_i,   W2_i <- W2_i s_i,   s_i = sqrt(r1_i / r2_i),   r_i = max |W_i|

Where one scale serves a whole weight, a channel a hundred times smaller than the largest is otherwise rounded to
nothing; depthwise convolutions are such. Scales per output channel need it less.

Deviations. (1) A Clip(0, c) (ReLU6) lets no factor through. The paper replaces it by a ReLU; that changes what some
networks compute (19 % of the answers of a MobileNetV2 with Keras' weights, on 64 ImageNet images). Here it stays: a
channel that comes near the cap on the samples keeps its scale, the others may grow only as far as they stay clear of
it. (2) Biases that grow are not absorbed into the next layer (section 4.1.3 there): that changes what is computed.
Instead no factor may lift a bias above the largest of its layer: a channel whose weights weight decay has all but
removed would otherwise get a bias of thousands, and the others share the scale of its activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from edgekd.quant.layers import GraphView, attribute, output_axis, weighted_layers
from edgekd.quant.observe import BATCH
from edgekd.runtimes.compare import batches
from edgekd.runtimes.onnxruntime import inner_values
from edgekd.runtimes.session import FloatArray

SWEEPS = 20
CONVERGED = 1e-3
"""A sweep that changes no factor by more than this is the last one."""
CLEAR = 0.8
"""Share of the cap that a channel may reach on the samples: other images may go beyond."""
HOMOGENEOUS = ("Relu", "LeakyRelu")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two layers between which nothing but an activation function stands.

    Attributes:
        first: A convolution, or a Gemm.
        second: Reads the channels that `first` makes.
    """

    first: str
    second: str


def pairs_of(view: GraphView) -> list[Pair]:
    """The pairs of a graph that can be equalised, in its order; layers that share weights are in none."""
    found = []
    layers = weighted_layers(view)
    uses = [name for layer in layers for name in view.nodes[layer].input[1:3]]
    for layer in layers:
        follower = _follower(view, layer)
        both = [] if follower is None else [*view.nodes[layer].input[1:3], *view.nodes[follower].input[1:3]]
        if follower in layers and all(uses.count(name) == 1 for name in both if name) and _fits(view, layer, follower):
            found.append(Pair(first=layer, second=follower))
    return found


def capped_values(view: GraphView) -> dict[str, float]:
    """Outputs of the Clip(0, c) between two layers of a pair, and c."""
    found = {}
    for pair in pairs_of(view):
        (reader,) = view.readers[view.nodes[pair.first].output[0]]
        if reader.op_type == "Clip":
            found[reader.output[0]] = float(view.array(reader.input[2]))
    return found


def peaks_of(model: onnx.ModelProto, images: FloatArray) -> dict[str, NDArray[np.float64]]:
    """(C,) largest value of each channel on images (N, C, H, W), for every capped value; in units of its cap."""
    view = GraphView(model)
    caps = capped_values(view)
    feeds = [{model.graph.input[0].name: part} for part in batches(images, BATCH)]
    peaks: dict[str, NDArray[np.float64]] = {}
    for values in inner_values(model, sorted(caps), feeds) if caps else ():
        for name, value in values.items():
            highest = np.moveaxis(value, 1, 0).reshape(value.shape[1], -1).max(axis=1) / caps[name]
            peaks[name] = np.maximum(highest, peaks.get(name, 0.0)).astype(np.float64)
    return peaks


def equalized(model: onnx.ModelProto, peaks: Mapping[str, NDArray[np.float64]]) -> tuple[onnx.ModelProto, int]:
    """A copy with like ranges across pairs of layers that computes the same, and how many pairs there are.

    Args:
        model: FP32, with distinct node names.
        peaks: As `peaks_of` gives them.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    view = GraphView(made)
    pairs = pairs_of(view)
    arrays = {
        name: view.array(name).astype(np.float64)
        for pair in pairs
        for layer in (pair.first, pair.second)
        for name in view.nodes[layer].input[1:3]
        if name
    }
    reached = {name: values.copy() for name, values in peaks.items()}
    for _ in range(SWEEPS):
        if max((_equalize_(view, pair, arrays, reached) for pair in pairs), default=0.0) < CONVERGED:
            break
    for name, values in arrays.items():
        view.write(name, values.astype(np.float32))
    return made, len(pairs)


def _equalize_(
    view: GraphView, pair: Pair, arrays: dict[str, NDArray[np.float64]], peaks: dict[str, NDArray[np.float64]]
) -> float:
    """Scales one pair and what is known of the value between; the largest relative change."""
    first, second = view.nodes[pair.first], view.nodes[pair.second]
    weight, follower = arrays[first.input[1]], arrays[second.input[1]]
    out = np.moveaxis(weight, output_axis(first, weight.ndim), 0)
    into = np.moveaxis(follower, _input_axis(second), 0)
    channels = len(out)
    # A depthwise layer has one or more outputs per input channel, next to each other.
    mine, theirs = out.reshape(channels, -1), into.reshape(channels, -1)
    r1, r2 = np.abs(mine).max(axis=1), np.abs(theirs).max(axis=1)
    usable = (r1 > 0) & (r2 > 0)
    factors = np.where(usable, np.sqrt(np.where(usable, r1, 1) / np.where(usable, r2, 1)), 1.0)
    bias = first.input[2] if len(first.input) > 2 else ""
    if bias:
        sizes = np.abs(arrays[bias])
        factors = np.maximum(factors, sizes / (sizes.max(initial=0.0) or 1.0))
    between = view.readers[first.output[0]][0]
    if between.op_type == "Clip":
        peak = peaks[between.output[0]]
        # A channel clear of the cap stays clear of it; one that is not keeps its scale.
        factors = np.where(peak <= CLEAR, np.maximum(factors, peak / CLEAR), 1.0)
        peak /= factors
    out /= factors.reshape(-1, *[1] * (out.ndim - 1))
    per_row = np.repeat(factors, len(into) // channels)
    into *= per_row.reshape(-1, *[1] * (into.ndim - 1))
    if bias:
        arrays[bias] /= factors
    return float(np.abs(factors - 1).max())


def _follower(view: GraphView, layer: str) -> str | None:
    """The node that alone reads a layer's output, directly or through one activation function."""
    value = view.nodes[layer].output[0]
    for crossed in (0, 1):
        if view.leaves(value) or len(view.readers.get(value, [])) != 1:
            return None
        (reader,) = view.readers[value]
        if crossed or not (reader.op_type in HOMOGENEOUS or _is_cap(view, reader)):
            return reader.name if reader.input[0] == value else None
        value = reader.output[0]
    return None


def _fits(view: GraphView, first: str, second: str) -> bool:
    """Whether channel i of one is channel i of the other, and a bias is a plain constant of that length."""
    a, b = view.nodes[first], view.nodes[second]
    weight, follower = view.constants[a.input[1]].dims, view.constants[b.input[1]].dims
    channels = weight[output_axis(a, len(weight))]
    if len(a.input) > 2 and a.input[2]:
        bias = view.constants.get(a.input[2])
        if bias is None or list(bias.dims) != [channels]:
            return False
    if a.op_type == "MatMul" or (b.op_type == "Conv") != (a.op_type == "Conv"):
        return False
    groups = attribute(b, "group", 1)
    if groups == 1:
        return bool(follower[_input_axis(b)] == channels)
    return bool(groups == channels and follower[1] == 1)


def _input_axis(node: onnx.NodeProto) -> int:
    if node.op_type == "Conv":
        return 0 if attribute(node, "group", 1) > 1 else 1
    return 1 if node.op_type == "Gemm" and attribute(node, "transB", 0) else 0


def _is_cap(view: GraphView, node: onnx.NodeProto) -> bool:
    """A Clip from 0 to a constant."""
    bounds = list(node.input[1:3])
    return (
        node.op_type == "Clip"
        and len(bounds) == 2
        and all(name in view.constants for name in bounds)
        and not view.array(bounds[0]).any()
        and bool(view.array(bounds[1]) > 0)
    )
