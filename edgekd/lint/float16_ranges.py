"""What would leave float16's range: found on samples, or suspected by operator where there are none.

The conversion to float16 keeps it in float32; the lint names it beforehand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgekd.errors import UserError
from edgekd.runtimes.compare import batches
from edgekd.runtimes.onnxruntime import values_in_graph
from edgekd.runtimes.session import FloatArray

FLOAT16_MAX = 65504.0
HEADROOM = 0.5
"""Values seen on samples may use this share of the range; others may exceed those that were seen."""

RANGE_BATCH = 4
"""Images whose inner values are in memory at once."""
SQUARING = frozenset(
    {"LayerNormalization", "InstanceNormalization", "GroupNormalization", "ReduceL2", "ReduceSumSquare"}
)
"""Operators whose inner values are squares of their inputs, which no value of the graph shows."""
RISKY = SQUARING | {"Exp", "Pow", "Softmax", "LogSoftmax", "ReduceSum", "ReduceMean", "GlobalAveragePool"}
"""Kept in float32 when no samples show their range; sums over many elements among them."""


@dataclass(frozen=True)
class Kept:
    """What stays float32.

    Attributes:
        values: Names of values, whose makers and readers then stay float32 too.
        operators: Names of the first output of operators; what they give may be float16 again.
    """

    values: frozenset[str] = frozenset()
    operators: frozenset[str] = frozenset()

    @property
    def names(self) -> list[str]:
        """All of them, sorted."""
        return sorted(self.values | self.operators)


def overflowing(model: onnx.ModelProto, ranges: Mapping[str, float]) -> Kept:
    """What must stay float32, from the largest magnitudes seen on samples.

    Args:
        model: A float32 graph.
        ranges: Largest magnitude by value name; values without one (constants) are judged by their own content.
    """
    limit = FLOAT16_MAX * HEADROOM
    return Kept(
        values=frozenset(name for name, magnitude in ranges.items() if not magnitude <= limit),
        operators=frozenset(
            node.output[0]
            for node in model.graph.node
            if node.op_type in SQUARING and any(ranges.get(name, 0.0) ** 2 > limit for name in node.input)
        ),
    )


def risky(model: onnx.ModelProto) -> Kept:
    """What stays float32 when nothing is known about ranges."""
    return Kept(operators=frozenset(node.output[0] for node in model.graph.node if node.op_type in RISKY))


def magnitudes(values: Mapping[str, NDArray[np.floating[Any]]]) -> dict[str, float]:
    """Largest magnitude by name; not finite counts as infinite."""
    return {
        name: float(np.nan_to_num(np.abs(value).max(initial=0.0), nan=np.inf, posinf=np.inf))
        for name, value in values.items()
    }


def observed_magnitudes(graph: onnx.ModelProto, input_name: str, images: FloatArray) -> dict[str, float]:
    """Largest magnitude of every floating-point value of a graph over images (N, C, H, W), each in its own type.

    A runtime that computes float16 graphs in float32 would hide an overflow; the values show it. A graph of a fixed
    batch sees whole batches, and images that are left over are not looked at.

    Raises:
        UserError: The graph's batch is larger than the number of images.
    """
    largest: dict[str, float] = {}
    fixed = _fixed_batch(graph, input_name)
    if fixed > len(images):
        raise UserError(
            f"The graph takes {fixed} images at once, and there are {len(images)} to look at its ranges on.",
            hint="export it with an open batch, or give more images",
        )
    whole = len(images) - (len(images) % fixed if fixed else 0)
    for part in batches(images[:whole], fixed or RANGE_BATCH):
        feeds = {input_name: part}
        for name, found in magnitudes({**feeds, **values_in_graph(graph, feeds)}).items():
            largest[name] = max(found, largest.get(name, 0.0))
    return largest


def _fixed_batch(graph: onnx.ModelProto, input_name: str) -> int:
    """The number of images that a graph takes at once; 0 where it is open."""
    axes = next(value.type.tensor_type.shape.dim for value in graph.graph.input if value.name == input_name)
    return int(axes[0].dim_value) if axes else 0
