"""Applies a `Preprocessing` to pixels, in two steps whose seam is a uint8 canvas.

The first step (decode, resize, crop to the canvas) is slow and the same in every epoch, so it can be cached; the second
(crop to the input size, scale, normalise) is fast and vectorised. Together they equal timm's evaluation transform: the
canvas is cut so that the final crop lies on the same pixels as one centre crop of the resized image would.
Augmentation starts from the same canvas and lives in `augment.py`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgekd.core.preprocess import Interpolation, Preprocessing
from edgekd.errors import UserError

UInt8Array = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]

RESAMPLING: dict[Interpolation, Image.Resampling] = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def resize_to_canvas(image: Image.Image, p: Preprocessing) -> UInt8Array:
    """(Hc, Wc, C) uint8: the image resized so that it covers `p.canvas`, centre cropped to it.

    Args:
        image: Any 8-bit mode; converted to RGB, or to grey when `p` has one channel.
        p: Its `canvas`, `size`, `interpolation` and `channels` are used.
    """
    mode = "RGB" if p.channels == 3 else "L"
    if image.mode != mode:
        image = image.convert(mode)
    height, width = _covering(image.height, image.width, p.canvas)
    image = _resized(image, height, width, RESAMPLING[p.interpolation])
    top = _centre(height, p.size[0]) - _centre(p.canvas[0], p.size[0])
    left = _centre(width, p.size[1]) - _centre(p.canvas[1], p.size[1])
    pixels = np.asarray(image, dtype=np.uint8).reshape(height, width, p.channels)
    return pixels[top : top + p.canvas[0], left : left + p.canvas[1]]


def preprocess(canvases: UInt8Array, p: Preprocessing) -> FloatArray:
    """(N, C, H, W) float32, contiguous: what the network is fed with in evaluation.

    Args:
        canvases: (N, Hc, Wc, C) uint8 with (Hc, Wc) equal to `p.canvas`, as `Split.images` returns them.
        p: The network's preprocessing.

    Raises:
        UserError: Another shape or type.
    """
    check_canvases(canvases, p)
    height, width = p.size
    top, left = centre_offset(p)
    return normalised(canvases[:, top : top + height, left : left + width], p)


def normalised(crops: UInt8Array, p: Preprocessing) -> FloatArray:
    """(N, C, H, W) float32, contiguous: channels ordered, scaled to [0, 1], shifted by the mean, divided by the std.

    Args:
        crops: (N, H, W, C) uint8.
        p: Its `channel_order`, `mean` and `std` are used.
    """
    if p.channels == 3 and p.channel_order == "BGR":
        crops = crops[..., ::-1]
    count, height, width, channels = crops.shape
    out = np.empty((count, channels, height, width), dtype=np.float32)
    for c in range(channels):
        np.multiply(crops[..., c], np.float32(1.0 / (255.0 * p.std[c])), out=out[:, c])
        out[:, c] += np.float32(-p.mean[c] / p.std[c])
    return out


def image_from_pixels(pixels: UInt8Array) -> Image.Image:
    """A Pillow image of (H, W, C) uint8 pixels; C is 1 or 3."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def centre_offset(p: Preprocessing) -> tuple[int, int]:
    """(top, left) of the centre crop inside the canvas."""
    return _centre(p.canvas[0], p.size[0]), _centre(p.canvas[1], p.size[1])


def check_canvases(canvases: UInt8Array, p: Preprocessing) -> None:
    """Raises a `UserError` unless `canvases` is (N, Hc, Wc, C) uint8 of the canvas of `p`."""
    expected = (*p.canvas, p.channels)
    if canvases.dtype != np.uint8 or canvases.ndim != 4 or canvases.shape[1:] != expected:
        want = ", ".join(str(size) for size in expected)
        raise UserError(
            f"Canvases: expected uint8 of shape (N, {want}), got {canvases.dtype} of shape {canvases.shape}."
        )


def _resized(image: Image.Image, height: int, width: int, resampling: Image.Resampling) -> Image.Image:
    """The image in another size, with equal pixels whatever version of Pillow is installed.

    Pillow resamples one axis after the other and rounds to 8 bits in between, so the order shows in the last bit. It
    began with the width until version 12, and begins with the height since version 13 where that shrinks by more than
    twice as many pixels. Two calls, each for one axis, take version 13's order everywhere; the device does the same.
    """
    if (height, width) == (image.height, image.width):
        return image
    vertical_first = height < image.height and image.height - height > 2 * (image.width - width)
    between = (image.width, height) if vertical_first else (width, image.height)
    return image.resize(between, resampling).resize((width, height), resampling)


def _covering(height: int, width: int, canvas: tuple[int, int]) -> tuple[int, int]:
    """Size after the resize. Rounds as timm does: down for a square canvas, to the nearest for any other."""
    if canvas[0] == canvas[1]:
        side = canvas[0]
        return (side, int(side * width / height)) if height <= width else (int(side * height / width), side)
    ratio = min(height / canvas[0], width / canvas[1])
    return round(height / ratio), round(width / ratio)


def _centre(outer: int, inner: int) -> int:
    return round((outer - inner) / 2)  # halves to even, as torchvision's CenterCrop has it
