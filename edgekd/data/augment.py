"""Training-time augmentation as a pure function of (seed, sample, view).

Nothing here has state: the view 3 of sample 812 is the same array whoever asks, in whatever batch, before or after a
restart. That is what makes a cached teacher output belong to exactly the pixels that the student sees (Beyer et al.
2022, arXiv 2106.05237, "a good teacher is patient and consistent"), and a resumed run bit-identical.
"""

from __future__ import annotations

from typing import Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from edgekd.core.preprocess import Preprocessing
from edgekd.core.schema import Schema
from edgekd.data.counter import integers, uniform
from edgekd.data.transform import (
    RESAMPLING,
    FloatArray,
    UInt8Array,
    centre_offset,
    check_canvases,
    image_from_pixels,
    normalised,
)
from edgekd.errors import UserError

_TOP, _LEFT, _FLIP, _SCALE, _RATIO = range(5)
_LOG_RATIO = float(np.log(4 / 3))

Int64Array = npt.NDArray[np.int64]


class Augment(Schema):
    """How training images vary.

    Attributes:
        pad_px: The centre crop moves by up to this many pixels in each direction; what lies outside of the canvas is
            black (the usual 4 for 32 x 32 images).
        flip: Mirrors every other image horizontally. Not for digits, text or anything else with a handedness.
        crop_scale_min: Below 1, a random-resized crop of this smallest share of the canvas's area, with aspect ratios
            from 3/4 to 4/3 (Szegedy et al. 2015, arXiv 1409.4842); for photographs. 0.08 from scratch, 0.35 or more
            when distilling small models.
        rand_layers: Random operations (RandAugment, colours and shapes) after crop and flip; 2 is usual, 0 is none. For
            colour images, through timm.
        rand_magnitude: Their strength, below 10; 9 is usual.
        views: How many different views of a sample exist; None means a new one each epoch. A finite number lets the
            teacher's outputs be computed once per view.
    """

    pad_px: int = Field(default=0, ge=0, le=64)
    flip: bool = False
    crop_scale_min: float = Field(default=1.0, gt=0, le=1)
    rand_layers: int = Field(default=0, ge=0, le=8)
    rand_magnitude: float = Field(default=9.0, gt=0, lt=10)
    views: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_crop(self) -> Self:
        if self.pad_px and self.crop_scale_min < 1:
            raise ValueError("choose one of pad_px (small images) and crop_scale_min < 1 (photographs)")
        return self

    def view(self, epoch: int) -> int:
        """The view that an epoch uses."""
        return epoch if self.views is None else epoch % self.views


def augmented(
    canvases: UInt8Array, sample_ids: Int64Array, view: int, p: Preprocessing, augment: Augment, seed: int
) -> FloatArray:
    """(N, C, H, W) float32, contiguous: one view of each image, preprocessed.

    Args:
        canvases: (N, Hc, Wc, C) uint8, as `Split.images` returns them.
        sample_ids: (N,) positions in the split; with `view` and `seed` they decide everything random.
        view: Which of the many views, at least 0.
        p: The network's preprocessing.
        augment: Kind and strength.
        seed: The run's seed.

    Raises:
        UserError: Shapes that do not belong together.
    """
    check_canvases(canvases, p)
    ids = np.asarray(sample_ids, dtype=np.int64)
    if ids.shape != canvases.shape[:1]:
        raise UserError(f"Sample ids: expected shape ({len(canvases)},), got {ids.shape}.")
    cut = _resized_crops if augment.crop_scale_min < 1 else _shifted_crops
    crops = cut(canvases, ids, view, p, augment, seed)
    if augment.flip:
        mirrored = uniform(ids, seed, view, _FLIP) < 0.5
        crops = np.where(mirrored[:, None, None, None], crops[:, :, ::-1], crops)
    if augment.rand_layers:
        from edgekd.data.timm import rand_augmented

        layers, magnitude = augment.rand_layers, augment.rand_magnitude
        crops = rand_augmented(np.ascontiguousarray(crops), ids, view, seed, layers=layers, magnitude=magnitude)
    return normalised(crops, p)


def _shifted_crops(
    canvases: UInt8Array, ids: Int64Array, view: int, p: Preprocessing, augment: Augment, seed: int
) -> UInt8Array:
    """(N, H, W, C): the centre crop, moved by up to `pad_px` pixels."""
    height, width = p.size
    top, left = centre_offset(p)
    pad = augment.pad_px
    if not pad:
        return canvases[:, top : top + height, left : left + width]
    padded = np.pad(canvases, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(1, 2))
    tops = top + integers(ids, 2 * pad + 1, seed, view, _TOP)
    lefts = left + integers(ids, 2 * pad + 1, seed, view, _LEFT)
    chosen: UInt8Array = windows[np.arange(len(ids)), tops, lefts]  # (N, C, H, W): the window axes come last
    return chosen.transpose(0, 2, 3, 1)


def _resized_crops(
    canvases: UInt8Array, ids: Int64Array, view: int, p: Preprocessing, augment: Augment, seed: int
) -> UInt8Array:
    """(N, H, W, C): random boxes of the canvas, resized to the input with the filter of `p`."""
    height, width = canvases.shape[1:3]
    area = augment.crop_scale_min + (1 - augment.crop_scale_min) * uniform(ids, seed, view, _SCALE)
    ratio = np.exp(_LOG_RATIO * (2 * uniform(ids, seed, view, _RATIO) - 1))
    box_h = np.minimum(np.sqrt(area / ratio), 1.0) * height
    box_w = np.minimum(np.sqrt(area * ratio), 1.0) * width
    tops = (height - box_h) * uniform(ids, seed, view, _TOP)
    lefts = (width - box_w) * uniform(ids, seed, view, _LEFT)
    boxes = np.stack([lefts, tops, np.minimum(lefts + box_w, width), np.minimum(tops + box_h, height)], axis=1)
    out = np.empty((len(ids), *p.size, canvases.shape[3]), dtype=np.uint8)
    for crop, canvas, (left, top, right, bottom) in zip(out, canvases, boxes.tolist(), strict=True):
        image = image_from_pixels(canvas)
        resized = image.resize((p.size[1], p.size[0]), RESAMPLING[p.interpolation], box=(left, top, right, bottom))
        crop[...] = np.asarray(resized).reshape(crop.shape)
    return out
