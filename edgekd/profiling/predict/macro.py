"""What is known of two published search spaces beyond their op ids: which results are read, what blocks cost.

NAS-Bench-201 (Dong and Yang, ICLR 2020, arXiv 2001.00326): a cell of four nodes and six edges. FBNet as HW-NAS-Bench
measured it on CIFAR-100 (Wu et al. 2019, arXiv 1812.03443; Li et al. 2021, arXiv 2103.10584): 22 blocks on 32 x 32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NB201_OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
_EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))

_FBNET_BLOCKS = ((3, 1, 1), (3, 1, 2), (3, 3, 1), (3, 6, 1), (5, 1, 1), (5, 1, 2), (5, 3, 1), (5, 6, 1))
"""(kernel, expansion, groups) by op id; 8 is a skip."""
_SKIP = 8
_FBNET_WIDTHS = (16, *[24] * 4, *[32] * 4, *[64] * 4, *[112] * 4, *[184] * 4, 352)
_FBNET_HALVES = (5, 9, 17)
"""Positions with stride 2."""
_STEM, _SIDE = 16, 32
_FBNET_STAGES = (0, *[1] * 4, *[2] * 4, *[3] * 4, *[4] * 4, *[5] * 5)
_FBNET_SHAPES = (0, 1, 2, 2, 2, 3, 4, 4, 4, 5, 6, 6, 6, 7, 8, 8, 8, 9, 10, 10, 10, 11)
"""Positions of a stage after its first take and give the same map."""


def unread_edges(cell: Sequence[int]) -> list[bool]:
    """For each of the six edges whether nothing that reaches the output reads its result."""
    read = {3}
    for node in (2, 1):
        if any(op and source == node and end in read for (source, end), op in zip(_EDGES, cell, strict=True)):
            read.add(node)
    return [end not in read for _, end in _EDGES]


def unfed_edges(cell: Sequence[int]) -> list[bool]:
    """For each of the six edges whether nothing but zeros reaches it; runtimes may fold what follows from constants."""
    fed = {0}
    for node in (1, 2):
        if any(op and end == node and source in fed for (source, end), op in zip(_EDGES, cell, strict=True)):
            fed.add(node)
    return [source not in fed for source, _ in _EDGES]


def is_fbnet(operations: NDArray[np.int64]) -> bool:
    """Whether op ids can be those of the FBNet space: 22 of them, from 0 to 8."""
    positions = len(_FBNET_WIDTHS)
    return operations.shape[1] == positions and bool(np.all((operations >= 0) & (operations <= _SKIP)))


def fbnet_numbers(operations: NDArray[np.int64]) -> NDArray[np.float64]:
    """(N, 5): pointwise and depthwise multiply-accumulates, elements moved, weights, and kernels of each network."""
    costs = _fbnet_costs()
    found: NDArray[np.float64] = costs[np.arange(len(_FBNET_WIDTHS)), operations].sum(axis=1)
    return found


def fbnet_stage_numbers(operations: NDArray[np.int64]) -> NDArray[np.float64]:
    """(N, 5 x stages): `fbnet_numbers` of each stage, as shares of what a stage and kind of number is on average."""
    costs = _fbnet_costs()
    costs = costs / (costs.mean(axis=(0, 1)) * len(_FBNET_WIDTHS))
    each = costs[np.arange(len(_FBNET_WIDTHS)), operations]
    found: NDArray[np.float64] = np.einsum("npf,ps->nsf", each, _membership(_FBNET_STAGES))
    return found.reshape(len(operations), -1)


def fbnet_shapes() -> NDArray[np.float64]:
    """(22, S) which positions have equal shapes, so that an operation costs the same at each of them."""
    return _membership(_FBNET_SHAPES)


def _membership(groups: Sequence[int]) -> NDArray[np.float64]:
    return np.asarray(np.array(groups)[:, None] == np.arange(max(groups) + 1), dtype=np.float64)


def _fbnet_costs() -> NDArray[np.float64]:
    """(22, 9, 5) of each block at each position."""
    costs = np.zeros((len(_FBNET_WIDTHS), _SKIP + 1, 5))
    width, side = _STEM, _SIDE
    for position, out in enumerate(_FBNET_WIDTHS):
        after = side // 2 if position in _FBNET_HALVES else side
        pixels, kept = side * side, after * after
        for op, (kernel, expansion, groups) in enumerate(_FBNET_BLOCKS):
            middle = width * expansion
            pointwise = (width * pixels + out * kept) * middle // groups
            depthwise = middle * kernel**2 * kept
            moved = width * pixels + 2 * middle * pixels + 2 * middle * kept + out * kept
            weights = (width + out) * middle // groups + middle * kernel**2
            costs[position, op] = pointwise, depthwise, moved, weights, 3 + (groups > 1)
        if after != side or width != out:  # then a skip is a 1x1 convolution
            costs[position, _SKIP] = width * out * kept, 0, width * pixels + out * kept, width * out, 1
        width, side = out, after
    return costs
