"""Resizes pixels exactly as Pillow does, with numpy alone: for cameras and decoders that give arrays.

Why it exists: OpenCV, PyTorch and others resize without low-pass filtering or round differently, and a model that was
trained on Pillow's pixels sees others there (README.md has figures). Pillow resamples in two passes of fixed-point
convolutions; with the same coefficients and the same rounding the results are equal bit by bit, which tests hold.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]

_BITS = 32 - 8 - 2
"""Fraction bits of a coefficient: a pixel has 8, and lobes may overshoot by a factor that takes two more."""


def _bilinear(x: float) -> float:
    return max(0.0, 1.0 - abs(x))


def _bicubic(x: float) -> float:
    """Keys' cubic convolution with a = -0.5."""
    x, a = abs(x), -0.5
    if x < 1.0:
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2.0 else 0.0


def _lanczos(x: float) -> float:
    """A sinc, windowed by one of three times its width."""
    return _sinc(x) * _sinc(x / 3) if -3.0 <= x < 3.0 else 0.0


def _sinc(x: float) -> float:
    return 1.0 if x == 0.0 else math.sin(x * math.pi) / (x * math.pi)


FILTERS: dict[str, tuple[Callable[[float], float], float]] = {
    "bilinear": (_bilinear, 1.0),
    "bicubic": (_bicubic, 2.0),
    "lanczos": (_lanczos, 3.0),
}
"""Function and support, in pixels, of each filter."""


def resized(pixels: UInt8Array, height: int, width: int, interpolation: str) -> UInt8Array:
    """(height, width, C) uint8: equal to `PIL.Image.resize((width, height), ...)` of Pillow 13.

    Args:
        pixels: (H, W, C) uint8.
        height: Of the result, positive.
        width: Of the result, positive.
        interpolation: `nearest`, `bilinear`, `bicubic` or `lanczos`.
    """
    if interpolation == "nearest":
        found: UInt8Array = pixels[_nearest(pixels.shape[0], height)][:, _nearest(pixels.shape[1], width)]
        return found
    if vertical_first(pixels.shape[0], pixels.shape[1], height, width):
        return _across(_down(pixels, height, interpolation), width, interpolation)
    return _down(_across(pixels, width, interpolation), height, interpolation)


def vertical_first(height: int, width: int, new_height: int, new_width: int) -> bool:
    """Whether Pillow 13 resamples the height first, which decides how the pixels between the passes are rounded.

    The rule was found by comparison: for photographs it holds where an image is more than twice as high as wide. Older
    versions always begin with the width.
    """
    return new_height < height and height - new_height > 2 * (width - new_width)


def _down(pixels: UInt8Array, height: int, interpolation: str) -> UInt8Array:
    return pixels if height == pixels.shape[0] else _convolved(pixels, height, interpolation)


def _across(pixels: UInt8Array, width: int, interpolation: str) -> UInt8Array:
    if width == pixels.shape[1]:
        return pixels
    # Whole rows are gathered, six times as fast as pixels here and there: worth turning the image twice.
    turned = np.ascontiguousarray(pixels.transpose(1, 0, 2))
    return np.ascontiguousarray(_convolved(turned, width, interpolation).transpose(1, 0, 2))


def _convolved(pixels: UInt8Array, size: int, interpolation: str) -> UInt8Array:
    """The first axis resampled to `size`."""
    rows, weights = _coefficients(pixels.shape[0], size, interpolation)
    total = np.full((size, *pixels.shape[1:]), 1 << (_BITS - 1), dtype=np.int32)
    for tap in range(rows.shape[1]):
        total += pixels[rows[:, tap]] * weights[:, tap, None, None]
    clipped: UInt8Array = np.clip(total >> _BITS, 0, 255).astype(np.uint8)
    return clipped


@functools.lru_cache(maxsize=64)
def _coefficients(
    size_in: int, size_out: int, interpolation: str
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int32]]:
    """(size_out, taps) each: which inputs make an output, and their weights in fixed point; absent taps weigh 0.

    Kept, since a camera's images are all of one size; not to be changed by who gets them.
    """
    function, reach = FILTERS[interpolation]
    scale = size_in / size_out
    stretch = max(scale, 1.0)  # a smaller image is low-pass filtered
    support = reach * stretch
    taps = math.ceil(support) * 2 + 1
    rows = np.zeros((size_out, taps), dtype=np.intp)
    weights = np.zeros((size_out, taps), dtype=np.int32)
    for position in range(size_out):
        centre = (position + 0.5) * scale
        first = max(0, int(centre - support + 0.5))
        last = min(size_in, int(centre + support + 0.5))
        values = [function((index - centre + 0.5) * (1.0 / stretch)) for index in range(first, last)]
        total = 0.0
        for value in values:  # one after the other, as the sum is rounded after each
            total += value
        for tap, value in enumerate(values):
            fixed = (value / total if total != 0.0 else value) * (1 << _BITS)
            rows[position, tap] = first + tap
            weights[position, tap] = int(fixed - 0.5 if fixed < 0 else fixed + 0.5)
    return rows, weights


def _nearest(size_in: int, size_out: int) -> npt.NDArray[np.intp]:
    """Which input each output takes; steps are added up, as Pillow does it, which decides ties."""
    scale = size_in / size_out
    steps = np.full(size_out, scale)
    steps[0] = scale * 0.5
    return np.minimum(np.cumsum(steps).astype(np.intp), size_in - 1)
