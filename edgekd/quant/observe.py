"""The one pass over the calibration samples: histograms of values, and moments of what enters each layer.

Ranges, rounding and bias correction are all computed from what is gathered here, without the samples. Memory is bounded
by the graph, not by the number of samples: 32 KiB per value, and per layer with K inputs to an output K numbers for its
bias, K x K for its rounding; the latter are gathered only when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from edgekd.errors import UserError
from edgekd.quant.histogram import Histogram
from edgekd.quant.layers import GraphView, attribute, bias_place, weighted_layers
from edgekd.runtimes.compare import batches
from edgekd.runtimes.onnxruntime import inner_values
from edgekd.runtimes.session import FloatArray

BATCH = 4
"""All observed values of a batch are in memory at once."""
POSITIONS = 64
"""Output positions of an image whose inputs enter the moments of a convolution."""
MAX_INPUTS = 4608
"""Inputs to one output of a layer above which no second moments are kept (K x K float64): 512 channels of 3x3."""
MomentKind = Literal["none", "mean", "full"]
"""What is kept of a layer's inputs: nothing, the mean (for biases), or second moments too (for rounding)."""


@dataclass(kw_only=True)
class Moments:
    """Of the inputs to one output of a layer, for each of its groups of channels.

    Attributes:
        rows: Input vectors seen.
        total: (G, K) their sum.
        gram: (G, K, K) the sum of their outer products; None where only the mean was wanted, or K is too large.
    """

    rows: int
    total: NDArray[np.float64]
    gram: NDArray[np.float64] | None = None

    @property
    def mean(self) -> NDArray[np.float64]:
        """(G, K)."""
        return self.total / max(self.rows, 1)

    def second(self, *, central: bool) -> NDArray[np.float64] | None:
        """(G, K, K) mean of the outer products, about the mean or about zero; None without."""
        if self.gram is None:
            return None
        raw, mean = self.gram / max(self.rows, 1), self.mean
        return raw - mean[:, :, None] * mean[:, None, :] if central else raw


@dataclass(kw_only=True)
class Observations:
    """What one pass found.

    Attributes:
        histograms: By the names of floating-point values that a quantizer may ask for, the input included.
        moments: By layer; empty when they were not asked for.
        without_moments: Layers of another form (1-D and 3-D convolutions, variable weights), and those that share
            their weight or bias, which cannot suit each of them.
        samples: Images seen.
    """

    histograms: dict[str, Histogram]
    moments: dict[str, Moments] = field(default_factory=dict)
    without_moments: tuple[str, ...] = ()
    samples: int = 0

    @property
    def constant(self) -> list[str]:
        """Values that never changed: a dead layer, or a branch that the samples do not reach."""
        return [name for name, seen in self.histograms.items() if seen.constant]


def observe(
    model: onnx.ModelProto,
    images: FloatArray,
    *,
    moments: MomentKind = "none",
    seed: int = 0,
    on_images: Callable[[int, int], None] = lambda done, total: None,
) -> Observations:
    """Runs the samples through an FP32 graph once.

    Args:
        model: With distinct node names and inferred types; left as it was.
        images: (N, C, H, W) float32.
        moments: `mean`: also gather what bias correction needs; `full`: and what rounding needs.
        seed: Of the positions that are looked at.
        on_images: Called with (done, all).

    Raises:
        UserError: No images, or values that are not finite.
    """
    require_samples(images)
    view = GraphView(model)
    wanted = weighted_layers(view) if moments != "none" else ()
    layers = [name for name in wanted if _readable(view, name) and not _shares(view, name)]
    source = model.graph.input[0].name
    watched = _watched(view)
    inputs = {name: view.nodes[name].input[0] for name in layers}
    exposed = sorted({*watched, *inputs.values()} - {source})
    histograms = {name: Histogram(name) for name in [source, *watched]}
    places = {name: np.random.default_rng([seed, at]) for at, name in enumerate(layers)}
    found: dict[str, Moments] = {}
    feeds = [{source: part} for part in batches(images, BATCH)]
    for done, (feed, values) in enumerate(zip(feeds, inner_values(model, exposed, feeds), strict=True)):
        every = {**values, **feed}
        for name, histogram in histograms.items():
            histogram.add(every[name])
        for name in layers:
            rows = _input_rows(view, name, every[inputs[name]], places[name])
            _add_moments(found, name, rows, second=moments == "full" and rows.shape[2] <= MAX_INPUTS)
        on_images(min((done + 1) * BATCH, len(images)), len(images))
    return Observations(
        histograms={name: seen for name, seen in histograms.items() if seen.seen},
        moments=found,
        without_moments=tuple(name for name in wanted if name not in found),
        samples=len(images),
    )


def require_samples(images: FloatArray) -> None:
    """Refuses an empty set of calibration samples with a `UserError`."""
    if not len(images):
        raise UserError(
            "There are no calibration samples, so no activation ranges can be found.",
            hint="give at least one image; some hundred are usual",
        )


def only_activation(view: GraphView, name: str) -> onnx.NodeProto | None:
    """The Relu or Clip that alone reads a value."""
    readers = view.readers.get(name, [])
    if len(readers) == 1 and not view.leaves(name) and readers[0].op_type in ("Relu", "Clip"):
        return readers[0]
    return None


def _watched(view: GraphView) -> list[str]:
    """Floating-point values that nodes compute, except those that only an activation function reads: they are fused."""
    known = {entry.name: entry.type.tensor_type.elem_type for entry in view.model.graph.value_info}
    known |= {entry.name: entry.type.tensor_type.elem_type for entry in view.model.graph.output}
    return [
        name
        for node in view.model.graph.node
        for name in node.output
        if known.get(name) == TensorProto.FLOAT and only_activation(view, name) is None
    ]


def _readable(view: GraphView, name: str) -> bool:
    node = view.nodes[name]
    shape = view.constants[node.input[1]].dims
    if node.input[0] in view.constants:
        return False
    if node.op_type == "Conv":
        return len(shape) == 4 and attribute(node, "auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
    if node.op_type == "Gemm":
        plain = attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1.0
        return plain and not attribute(node, "transA", 0)
    return len(shape) == 2


def _shares(view: GraphView, name: str) -> bool:
    """Whether another node reads the weight or the bias of a layer."""
    constants, place = [view.nodes[name].input[1]], bias_place(view, name)
    if place is not None:
        constants.append(place[0].input[place[1]])
    return any(len(view.readers[constant]) > 1 for constant in constants)


def _input_rows(view: GraphView, name: str, values: FloatArray, rng: np.random.Generator) -> NDArray[np.float64]:
    """(G, R, K): the inputs to one output, for each group, at some positions of every image."""
    node = view.nodes[name]
    if node.op_type != "Conv":
        flat = values.reshape(-1, values.shape[-1])
        chosen = rng.choice(len(flat), min(len(flat), BATCH * POSITIONS), replace=False)
        return flat[None, chosen].astype(np.float64)
    height, width = view.constants[node.input[1]].dims[2:]
    top, left, bottom, right = attribute(node, "pads", [0, 0, 0, 0])
    step_y, step_x = attribute(node, "strides", [1, 1])
    apart_y, apart_x = attribute(node, "dilations", [1, 1])
    padded = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)))
    rows = (padded.shape[2] - apart_y * (height - 1) - 1) // step_y + 1
    columns = (padded.shape[3] - apart_x * (width - 1) - 1) // step_x + 1
    chosen = rng.choice(rows * columns, min(rows * columns, POSITIONS), replace=False)
    ys = (chosen // columns * step_y)[:, None, None] + (np.arange(height) * apart_y)[None, :, None]
    xs = (chosen % columns * step_x)[:, None, None] + (np.arange(width) * apart_x)[None, None, :]
    patches = padded[:, :, ys, xs]  # (N, C, P, kh, kw)
    groups, n = attribute(node, "group", 1), len(values)
    split = patches.reshape(n, groups, -1, len(chosen), height, width)
    return split.transpose(1, 0, 3, 2, 4, 5).reshape(groups, n * len(chosen), -1).astype(np.float64)


def _add_moments(found: dict[str, Moments], name: str, rows: NDArray[np.float64], *, second: bool) -> None:
    total, gram = rows.sum(axis=1), np.matmul(rows.transpose(0, 2, 1), rows) if second else None
    before = found.get(name)
    if before is None:
        found[name] = Moments(rows=rows.shape[1], total=total, gram=gram)
        return
    before.rows += rows.shape[1]
    before.total += total
    if before.gram is not None and gram is not None:
        before.gram += gram
