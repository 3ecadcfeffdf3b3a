"""Rounds weights up or down so that the layer's output changes least, and moves what is left of the mean into biases.

Rounding each weight to its nearest level is not best: errors of weights that work on correlated inputs add up. As in
AdaRound (Nagel et al. 2020, arXiv 2004.10568) each layer is reconstructed on the calibration samples, weight by weight
up or down:

    minimise   e^T G e,   e = w' - w,   G = E[x x^T]   for each output channel, over w' on the grid

Deviations. (1) The paper relaxes the choice to a sigmoid and trains it with Adam for 10,000 steps; here single weights
are moved to their other neighbour as long as that lowers the objective, always the one that lowers it most (coordinate
descent, as QuantEase does, Behdin et al. 2023, arXiv 2309.01885). That has no rates and no seeds, never ends above
nearest rounding, and takes seconds rather than minutes per layer on a CPU. (2) Layers see the FP32 inputs rather than
those of the quantized layers before them, so that one pass over the samples serves all. (3) The activation function is
not part of the objective.

Bias correction (Nagel et al. 2019, arXiv 1906.04721, section 4.2) takes E[x] from the samples:

    b' = b - (w' - w) E[x]

With it, what the bias takes over need not be avoided by rounding: G is then the covariance of x.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from edgekd.quant.layers import (
    GraphView,
    QuantizedWeight,
    add_to_bias_,
    bias_place,
    output_axis,
    quantized_weight_of,
    write_codes_,
)
from edgekd.quant.observe import Moments, Observations
from edgekd.runtimes.session import FloatArray

Biases = Literal["correct", "carry", "leave"]
"""`correct`: move the mean error into the bias; `carry`: the biases were corrected for nearest rounding, so only what
other rounding changes of the mean moves; `leave`: no bias changes."""

MOVES = 4
"""Moves per weight of a channel, at most; more have not been seen to be needed."""


@dataclass(frozen=True, kw_only=True)
class Refined:
    """A layer's better weights.

    Attributes:
        codes: Of the shape of the weight.
        shift: (O,) to be added to the bias; None leaves it.
    """

    codes: NDArray[np.int64]
    shift: NDArray[np.float64] | None


def refined_layers(
    full: onnx.ModelProto,
    quantized: onnx.ModelProto,
    seen: Observations,
    *,
    rounding: bool,
    biases: Biases,
    on_layer: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Refined]:
    """Better weights and biases for the quantized layers of a graph, by layer.

    Args:
        full: The FP32 graph.
        quantized: Its INT8 twin with nearest rounding, its layers named as in `full`.
        seen: With moments.
        rounding: Choose between the two neighbours of every weight, where second moments are known.
        biases: What to do with them; a layer without one always leaves it.
        on_layer: Called with (done, all).
    """
    plain, coded = GraphView(full), GraphView(quantized)
    found: dict[str, Refined] = {}
    for done, (layer, moments) in enumerate(seen.moments.items()):
        weight = quantized_weight_of(coded, layer) if layer in coded.nodes else None
        if weight is not None:
            node = plain.nodes[layer]
            axis = output_axis(node, len(plain.constants[node.input[1]].dims))
            movable = bias_place(plain, layer) is not None and bias_place(coded, layer) is not None
            found[layer] = _refined(
                plain.array(node.input[1]), weight, axis, moments, rounding, biases if movable else "leave"
            )
        on_layer(done + 1, len(seen.moments))
    return found


def apply_refined_(quantized: onnx.ModelProto, refined: dict[str, Refined]) -> None:
    """Writes better weights and biases into an INT8 graph; layers that are in float there stay as they are."""
    view = GraphView(quantized)
    for layer, better in refined.items():
        weight = quantized_weight_of(view, layer) if layer in view.nodes else None
        if weight is not None:
            write_codes_(view, weight, better.codes)
            if better.shift is not None:
                add_to_bias_(view, layer, better.shift.astype(np.float32))


def _refined(
    weight: FloatArray, on_grid: QuantizedWeight, axis: int, moments: Moments, rounding: bool, biases: Biases
) -> Refined:
    groups = len(moments.total)
    scales = _matrix(np.broadcast_to(on_grid.scales, weight.shape), axis, groups).astype(np.float64)
    wanted = _matrix(weight, axis, groups).astype(np.float64) / scales
    nearest = _matrix(on_grid.codes, axis, groups)
    second = moments.second(central=biases != "leave") if rounding else None
    codes = nearest if second is None else descended(wanted, nearest, second, on_grid.limits)
    moved = {"correct": (codes - wanted) * scales, "carry": (codes - nearest) * scales, "leave": None}[biases]
    return Refined(
        codes=_from_matrix(codes, axis, weight.shape),
        shift=None if moved is None else -np.einsum("gok,gk->go", moved, moments.mean).reshape(-1),
    )


def descended(
    wanted: NDArray[np.float64], start: NDArray[np.int64], second: NDArray[np.float64], limits: tuple[int, int]
) -> NDArray[np.int64]:
    """Codes at a local minimum of `e^T G e`, e = codes - wanted: no single move to the other neighbour lowers it.

    Scales cancel, because all weights of an output channel share one.

    Args:
        wanted: (G, O, K) weights in units of their scale.
        start: (G, O, K) codes to begin with.
        second: (G, K, K) symmetric, positive semi-definite.
        limits: Smallest and largest code.
    """
    codes = start.copy()
    low, high = np.floor(wanted).astype(np.int64), np.ceil(wanted).astype(np.int64)
    for group, gram in enumerate(second):
        mine, target = codes[group], wanted[group]
        other = low[group] + high[group]  # minus the code gives the other neighbour
        allowed = (np.minimum(low[group], mine) >= limits[0]) & (np.maximum(high[group], mine) <= limits[1])
        allowed &= (mine == low[group]) | (mine == high[group])
        curvature = np.diag(gram)
        slope = 2 * (mine - target) @ gram
        rows = np.arange(len(mine))
        tolerance = 1e-12 * max(float(curvature.max(initial=0.0)), 1e-30)
        for _ in range(MOVES * mine.shape[1]):
            step = other - 2 * mine
            gain = np.where(allowed, step * slope + step * step * curvature, 0.0)
            best = gain.argmin(axis=1)
            moved = rows[gain[rows, best] < -tolerance]
            if not len(moved):
                break
            at = best[moved]
            jump = step[moved, at]
            mine[moved, at] += jump
            slope[moved] += 2 * jump[:, None] * gram[at]
    return codes


def _matrix(values: NDArray[Any], axis: int, groups: int) -> NDArray[Any]:
    """(G, O / G, K): one row per output channel."""
    moved = np.moveaxis(values, axis, 0)
    return moved.reshape(groups, moved.shape[0] // groups, -1)


def _from_matrix(rows: NDArray[np.int64], axis: int, shape: tuple[int, ...]) -> NDArray[np.int64]:
    first = (shape[axis], *(size for at, size in enumerate(shape) if at != axis))
    return np.ascontiguousarray(np.moveaxis(rows.reshape(first), 0, axis))
