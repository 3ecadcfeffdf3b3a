"""Preprocessing as data: one object serves training, calibration, parity, evaluation and the deployed bundle.

It only describes; `edgekd.data.transform` applies it. An image is resized so that its shorter side is `canvas`, centre
cropped to `canvas`, centre cropped to `size`, ordered, scaled to [0, 1], shifted by `mean` and divided by `std`.
"""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from edgekd.core.digest import Digest, digest
from edgekd.core.schema import Schema

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]


class Preprocessing(Schema):
    """What happens to pixels before the network sees them.

    Attributes:
        size: (H, W) of the network's input, in pixels.
        mean: Per channel, of pixels scaled to [0, 1]; its length (1 or 3) is the number of channels.
        std: Per channel, positive.
        interpolation: How an image is resized.
        channel_order: Order of the three channels the network expects; ignored for one channel.
        crop_fraction: `size / canvas`; 0.875 means resize to 256 and crop 224.
    """

    size: tuple[int, int] = Field(min_length=2)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: Interpolation = "bilinear"
    channel_order: Literal["RGB", "BGR"] = "RGB"
    crop_fraction: float = Field(default=1.0, gt=0, le=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise ValueError(f"mean and std must both have 1 or 3 values, got {len(self.mean)} and {len(self.std)}")
        if min(self.std) <= 0 or min(self.size) <= 0:
            raise ValueError("std and size must be positive")
        return self

    @property
    def channels(self) -> int:
        """1 (grey) or 3."""
        return len(self.mean)

    @property
    def canvas(self) -> tuple[int, int]:
        """(H, W) that an image is resized and cropped to before the final crop to `size`."""
        height, width = self.size
        return math.floor(height / self.crop_fraction), math.floor(width / self.crop_fraction)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one preprocessed image."""
        return self.channels, *self.size

    @property
    def digest(self) -> Digest:
        return digest("preprocessing", self.plain())
