"""The numpy resize equals Pillow's bit by bit, for every filter, whatever happens to the aspect ratio."""

from __future__ import annotations

import numpy as np
import pytest
from edgekd_runtime.preprocess import covering
from edgekd_runtime.resize import FILTERS, resized, vertical_first
from PIL import Image

FILTER_NAMES = ("nearest", *FILTERS)


def _with_pillow(pixels: np.ndarray, height: int, width: int, name: str) -> np.ndarray:
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    found = image.resize((width, height), Image.Resampling[name.upper()])
    return np.asarray(found).reshape(height, width, pixels.shape[2])


@pytest.mark.parametrize("name", FILTER_NAMES)
@pytest.mark.parametrize("hard_edges", [False, True])
def test_pixels_equal_those_of_pillow(name: str, hard_edges: bool) -> None:
    rng = np.random.default_rng(1)
    for _ in range(60):
        height, width, new_height, new_width = (int(n) for n in rng.integers(1, 120, 4))
        channels = int(rng.choice([1, 3]))
        pixels = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
        if hard_edges:  # lobes overshoot there and have to be clipped
            pixels = np.where(pixels > 127, np.uint8(255), np.uint8(0))
        wanted = _with_pillow(pixels, new_height, new_width, name)
        assert np.array_equal(resized(pixels, new_height, new_width, name), wanted), (pixels.shape, wanted.shape)


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("shape", [(300, 90), (90, 300), (300, 150), (299, 150), (301, 150), (257, 256)])
def test_photographs_of_any_shape_are_covered(name: str, shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (*shape, 3), dtype=np.uint8)
    new = covering(*shape, (64, 64))
    assert np.array_equal(resized(pixels, *new, name), _with_pillow(pixels, *new, name))


def test_the_order_of_the_passes_matters() -> None:
    assert vertical_first(300, 90, 213, 64)
    assert not vertical_first(90, 300, 64, 213)
    pixels = np.random.default_rng(2).integers(0, 256, (300, 90, 1), dtype=np.uint8)
    across = _with_pillow(_with_pillow(pixels, 300, 64, "lanczos"), 213, 64, "lanczos")
    assert not np.array_equal(resized(pixels, 213, 64, "lanczos"), across)


def test_the_comparison_can_fail() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    assert not np.array_equal(resized(pixels, 20, 15, "bicubic"), _with_pillow(pixels, 20, 15, "bilinear"))


def test_an_image_of_the_right_size_is_left_alone() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    assert np.array_equal(resized(pixels, 9, 7, "lanczos"), pixels)
