"""From an image to what the network takes, equal to edgekd's own preprocessing.

The steps and their arithmetic are those that the model was trained, calibrated and measured with. An image that Pillow
decodes is resized by Pillow; an array of pixels by `resize.py`, to the same values. Orientation tags (EXIF) are not
applied, as they were not in training: turn an image before it is handed over if the camera relies on them.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np
import numpy.typing as npt

from edgekd_runtime.errors import BundleError, ImageError
from edgekd_runtime.resize import UInt8Array, resized, vertical_first

if TYPE_CHECKING:
    from PIL import Image

FloatArray = npt.NDArray[np.float32]
ImageLike: TypeAlias = Union[str, "os.PathLike[str]", bytes, UInt8Array, "Image.Image"]

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
_GREY = np.array([19595, 38470, 7471], dtype=np.int64)
"""ITU-R 601 luma in 16-bit fixed point, as Pillow converts RGB to grey."""


@dataclass(frozen=True)
class Preprocessing:
    """What happens to pixels before the network sees them.

    Attributes:
        size: (H, W) of the network's input, in pixels.
        mean: Per channel, of pixels scaled to [0, 1]; 1 (grey) or 3 values.
        std: Per channel.
        interpolation: How an image is resized.
        channel_order: `RGB` or `BGR`, what the network expects.
        crop_fraction: `size / canvas`; 0.875 means resize to 256 and crop 224.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    channel_order: str = "RGB"
    crop_fraction: float = 1.0

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Preprocessing:
        """From `preprocessing.json`.

        Raises:
            BundleError: A field is missing, unknown or has a value that makes no sense.
        """
        unknown = set(data) - set(cls.__dataclass_fields__)
        if unknown:
            raise BundleError(
                f"The preprocessing has steps that this version does not know: {', '.join(sorted(unknown))}.",
                "install a newer edgekd-runtime; leaving a step out would feed the model other pixels",
            )
        try:
            height, width = data["size"]
            found = cls(
                size=(int(height), int(width)),
                mean=tuple(float(value) for value in data["mean"]),
                std=tuple(float(value) for value in data["std"]),
                interpolation=str(data.get("interpolation", "bilinear")),
                channel_order=str(data.get("channel_order", "RGB")),
                crop_fraction=float(data.get("crop_fraction", 1.0)),
            )
        except (KeyError, TypeError, ValueError) as err:
            raise BundleError(f"The preprocessing is incomplete: {type(err).__name__}: {err}.") from err
        sound = (
            len(found.mean) == len(found.std)
            and len(found.mean) in (1, 3)
            and min(found.size) > 0
            and min(found.std) > 0
            and all(map(math.isfinite, (*found.mean, *found.std)))
            and found.interpolation in INTERPOLATIONS
            and found.channel_order in ("RGB", "BGR")
            and 0 < found.crop_fraction <= 1
        )
        if not sound:
            raise BundleError(f"The preprocessing makes no sense: {found}.")
        return found

    @property
    def channels(self) -> int:
        """1 (grey) or 3."""
        return len(self.mean)

    @property
    def canvas(self) -> tuple[int, int]:
        """(H, W) that a resized image covers before the crop to `size`."""
        return math.floor(self.size[0] / self.crop_fraction), math.floor(self.size[1] / self.crop_fraction)

    def __call__(self, image: ImageLike) -> FloatArray:
        """(1, C, H, W) float32, contiguous: what the network is fed with.

        Args:
            image: A file, the bytes of a file, a Pillow image, or (H, W, 3) uint8 RGB; also (H, W), (H, W, 1) grey and
                (H, W, 4) RGBA, whose alpha is dropped. OpenCV gives BGR: hand over `frame[..., ::-1]`.

        Raises:
            ImageError: It cannot be read, or has more than 8 bits per channel.
        """
        return self.normalised(self.cropped(image)[None])

    def cropped(self, image: ImageLike) -> UInt8Array:
        """(H, W, C) uint8: resized so that it covers the canvas, and centre cropped to `size`."""
        if isinstance(image, np.ndarray):
            pixels = self._coloured(image)
            height, width = covering(pixels.shape[0], pixels.shape[1], self.canvas)
            return self._centre(resized(pixels, height, width, self.interpolation))
        picture = _converted(_opened(image), "RGB" if self.channels == 3 else "L")
        height, width = covering(picture.height, picture.width, self.canvas)
        if (height, width) != (picture.height, picture.width):
            # Axis by axis, so that every version of Pillow takes the passes in one order.
            turned = vertical_first(picture.height, picture.width, height, width)
            between = (picture.width, height) if turned else (width, picture.height)
            filtering = _resampling(self.interpolation)
            picture = picture.resize(between, filtering).resize((width, height), filtering)
        return self._centre(np.asarray(picture, dtype=np.uint8).reshape(height, width, self.channels))

    def normalised(self, crops: UInt8Array) -> FloatArray:
        """(N, C, H, W) float32 from (N, H, W, C) uint8: ordered, scaled to [0, 1], shifted, divided."""
        if self.channels == 3 and self.channel_order == "BGR":
            crops = crops[..., ::-1]
        out = np.empty((crops.shape[0], self.channels, *crops.shape[1:3]), dtype=np.float32)
        for c in range(self.channels):
            scale, shift = np.float32(1.0 / (255.0 * self.std[c])), np.float32(-self.mean[c] / self.std[c])
            np.multiply(crops[..., c], scale, out=out[:, c], dtype=np.float32)
            out[:, c] += shift
        return out

    def _centre(self, pixels: UInt8Array) -> UInt8Array:
        height, width = self.size
        top, left = round((pixels.shape[0] - height) / 2), round((pixels.shape[1] - width) / 2)
        return pixels[top : top + height, left : left + width]

    def _coloured(self, pixels: UInt8Array) -> UInt8Array:
        """(H, W, C) with the model's number of channels."""
        if (
            pixels.dtype != np.uint8
            or pixels.ndim not in (2, 3)
            or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4))
        ):
            raise ImageError(
                f"Expected pixels as (H, W, 3) uint8 RGB, or grey, got {pixels.dtype} of shape {pixels.shape}.",
                "the engine scales and normalises itself; `engine.run` takes preprocessed arrays, a list is a batch",
            )
        if min(pixels.shape[:2]) < 1:
            raise ImageError(f"Expected an image with at least one pixel, got the shape {pixels.shape}.")
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels[..., :3]
        if pixels.shape[2] == self.channels:
            return pixels
        if self.channels == 3:
            return np.repeat(pixels, 3, axis=2)
        grey: UInt8Array = ((pixels.astype(np.int64) @ _GREY + 0x8000) >> 16).astype(np.uint8)[..., None]
        return grey


def covering(height: int, width: int, canvas: tuple[int, int]) -> tuple[int, int]:
    """(H, W) after the resize. Rounds as edgekd and timm do: down for a square canvas, else to the nearest."""
    if canvas[0] == canvas[1]:
        side = canvas[0]
        return (side, int(side * width / height)) if height <= width else (int(side * height / width), side)
    ratio = min(height / canvas[0], width / canvas[1])
    return round(height / ratio), round(width / ratio)


def _opened(image: Any) -> Image.Image:
    """A Pillow image whose pixels are loaded."""
    try:
        from PIL import Image
    except ImportError as err:
        raise ImageError(
            "Reading image files needs Pillow, which is not installed.",
            "pip install 'edgekd-runtime[images]', or decode yourself and hand over (H, W, 3) uint8 RGB",
        ) from err
    if isinstance(image, Image.Image):
        given: Image.Image = image
        return given
    if isinstance(image, (bytes, bytearray)):
        source: Any = io.BytesIO(image)
        where = f"{len(image)} bytes"
    elif isinstance(image, (str, os.PathLike)):
        source, where = os.fspath(image), os.fspath(image)
    else:
        raise ImageError(f"Expected an image as a path, bytes, a Pillow image or pixels, got {type(image).__name__}.")
    try:
        opened: Image.Image = Image.open(source)
        with opened:
            opened.load()
    except FileNotFoundError as err:
        raise ImageError(f"{where}: there is no such file.") from err
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as err:
        raise ImageError(f"{where}: cannot be read as an image ({err}).") from err
    return opened


def _converted(image: Image.Image, mode: str) -> Image.Image:
    if image.mode[0] in "IF":
        raise ImageError(
            f"Expected 8 bits per channel, got an image of mode {image.mode}.",
            "scale it to 8 bits before handing it over",
        )
    if image.mode == mode:
        return image
    converted: Image.Image = image.convert(mode)
    return converted


def _resampling(name: str) -> Image.Resampling:
    from PIL import Image

    return Image.Resampling[name.upper()]
