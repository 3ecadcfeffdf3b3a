"""What a value of the graph looked like on the calibration samples, gathered in one pass and in bounded memory.

All ways of choosing a range read the same histogram, so trying four of them costs one pass over the samples. Choosing
is `edgekd.quant.ranges`' affair.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import UserError

BINS = 2048
"""On either side of zero; at least half of those on the longer side are in use."""
COUNTED = 1 << 16
"""Elements of one call that are counted at most; the extremes are taken from all of them."""


class Histogram:
    """Counts of values in bins of equal width, one edge of which is zero; extremes are exact.

    When a value lies outside, the width doubles and neighbouring bins merge, so that earlier counts stay exact and the
    result does not depend on a first guess. Of large arrays every n-th element is counted, the same on every run.

    Args:
        name: Of the value, for messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.low, self.high = np.inf, -np.inf
        self.width = 0.0
        self.zeros = 0
        self._counts = np.zeros(2 * BINS, dtype=np.int64)

    def add(self, values: NDArray[np.floating]) -> None:
        """Counts values of any shape.

        Raises:
            UserError: Some are not finite.
        """
        flat = values.ravel()
        if not flat.size:
            return
        low, high = float(flat.min()), float(flat.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise UserError(
                f"The value {self.name!r} of the FP32 graph is not finite on the calibration samples.",
                hint="a network that overflows in FP32 cannot be quantized; check the weights and the preprocessing",
            )
        self.low, self.high = min(self.low, low), max(self.high, high)
        few = flat[:: _stride(values.shape)]
        zeros = few == 0
        self.zeros += int(zeros.sum())
        self._grow(max(high, -low))
        if self.width:
            places = np.floor(few[~zeros].astype(np.float64) / self.width).astype(np.int64) + BINS
            self._counts += np.bincount(np.clip(places, 0, 2 * BINS - 1), minlength=2 * BINS)

    @property
    def constant(self) -> bool:
        """All values seen were equal."""
        return self.low == self.high

    @property
    def seen(self) -> bool:
        """Anything was counted."""
        return self.low <= self.high

    def bins(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(centres, counts) of the bins that hold something; zeros, which every grid holds exactly, are in none."""
        places = np.flatnonzero(self._counts)
        centres = (places - BINS + 0.5) * self.width
        return np.clip(centres, self.low, self.high), self._counts[places].astype(np.float64)

    def _grow(self, magnitude: float) -> None:
        if magnitude == 0:
            return
        if self.width == 0:
            self.width = magnitude / BINS
        while magnitude > self.width * BINS:
            # Bin k holds [k w, (k + 1) w): pairs that begin at an even k become bin k / 2 of width 2 w.
            merged = self._counts.reshape(-1, 2).sum(axis=1)
            self._counts[:] = 0
            self._counts[BINS // 2 : BINS // 2 + BINS] = merged
            self.width *= 2


def _stride(shape: tuple[int, ...]) -> int:
    """Every how manieth element is counted: coprime with all dimensions, or it would see some channels only."""
    step = -(-math.prod(shape) // COUNTED)
    while any(math.gcd(step, size) > 1 for size in shape):
        step += 1
    return step
