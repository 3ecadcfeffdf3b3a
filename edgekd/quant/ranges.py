"""From a histogram to the range that 8 bits cover: extremes, percentiles, least squared error, least information lost.

A narrower range rounds finer and cuts off more; which is better depends on the network, so `edgekd.quant.calibrators`
tries all of them. Every range holds zero, as integer kernels and zero padding want it.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from edgekd.quant.histogram import Histogram

RangeMethod = Literal["minmax", "percentile", "entropy", "mse"]
CalibMethod = Literal["auto", "minmax", "percentile", "entropy", "mse"]
"""How ranges are found: one of the methods, or the best of them on held-out samples."""
RANGE_METHODS: tuple[RangeMethod, ...] = get_args(RangeMethod)
PERCENTILE = 99.99
LEVELS = 256
SHRINKS = np.geomspace(1.0, 0.02, 58)
"""Factors of the extremes that are tried on either side."""


class Range(NamedTuple):
    """Low <= 0 <= high."""

    low: float
    high: float


def range_of(histogram: Histogram, method: RangeMethod, *, symmetric: bool = False) -> Range:
    """The range of a value by one method; a constant value has the range from zero to it under every method.

    - `minmax`: the extremes.
    - `percentile`: what is left of all elements when 0.01 % are cut off, half of them on either side.
    - `mse`: the range with the least sum of squared rounding and clipping errors over the histogram.
    - `entropy`: the range with the least KL divergence of the rounded from the clipped distribution (Migacz, 8-bit
      Inference with TensorRT, GTC 2017), here over an affine grid. Exact zeros are left out of both: after a ReLU
      they are most of the elements, lose nothing, and would drown the rest.

    Args:
        histogram: Of a value that was seen.
        method: See above.
        symmetric: The grid is symmetric around zero, so that low = -high.
    """
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if symmetric:
        low, high = -max(-low, high), max(-low, high)
    if method == "minmax" or histogram.constant or low == high:
        return Range(low, high)
    centres, counts = histogram.bins()
    if method == "percentile":
        found = _percentile(histogram, centres, counts)
        if symmetric:
            return Range(-max(-found.low, found.high), max(-found.low, found.high))
        return found
    if symmetric:
        candidates = [Range(float(low * share), float(high * share)) for share in SHRINKS]
    else:
        shares_low = SHRINKS if low < 0 else SHRINKS[:1]
        shares_high = SHRINKS if high > 0 else SHRINKS[:1]
        if low < 0 < high:  # both ends move: every third factor suffices
            shares_low, shares_high = shares_low[::3], shares_high[::3]
        candidates = [Range(float(low * a), float(high * b)) for a in shares_low for b in shares_high]
    loss = _squared_error if method == "mse" else _divergence
    # The widest range comes first and is kept on a tie.
    return min(candidates, key=lambda candidate: loss(candidate, centres, counts))


def _percentile(histogram: Histogram, centres: NDArray[np.float64], counts: NDArray[np.float64]) -> Range:
    order = np.searchsorted(centres, 0.0)
    values = np.insert(centres, order, 0.0)
    weights = np.insert(counts, order, float(histogram.zeros))
    below = np.cumsum(weights) / weights.sum()
    tail = (100 - PERCENTILE) / 200
    low = float(values[np.searchsorted(below, tail)])
    high = float(values[min(int(np.searchsorted(below, 1 - tail)), len(values) - 1)])
    half = histogram.width / 2  # from the centres to the outer edges of the bins
    return Range(max(min(low - half, 0.0), min(histogram.low, 0.0)), min(max(high + half, 0.0), max(histogram.high, 0)))


def _codes(candidate: Range, values: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """(whole numbers relative to zero, scale): the grid of 256 levels that covers the range."""
    scale = (candidate.high - candidate.low) / (LEVELS - 1)
    first = np.rint(candidate.low / scale)
    return np.clip(np.rint(values / scale), first, first + LEVELS - 1), scale


def _squared_error(candidate: Range, centres: NDArray[np.float64], counts: NDArray[np.float64]) -> float:
    codes, scale = _codes(candidate, centres)
    return float((counts * (codes * scale - centres) ** 2).sum())


def _divergence(candidate: Range, centres: NDArray[np.float64], counts: NDArray[np.float64]) -> float:
    """KL(P || Q): P has what lies outside in its outermost bins, Q spreads each level evenly over the bins inside."""
    inside = (centres >= candidate.low) & (centres <= candidate.high)
    if not inside.any():
        return np.inf
    kept = counts[inside].copy()
    codes, _ = _codes(candidate, centres[inside])
    levels = (codes - codes.min()).astype(np.int64)
    in_level, bins_in_level = np.bincount(levels, weights=kept), np.bincount(levels)
    spread = (in_level / np.maximum(bins_in_level, 1))[levels]
    places = np.flatnonzero(inside)
    kept[0] += counts[: places[0]].sum()
    kept[-1] += counts[places[-1] + 1 :].sum()
    p, q = kept / kept.sum(), spread / spread.sum()
    return float((p * np.log(p / q)).sum())
