"""RandAugment (Cubuk et al. 2020, arXiv 1909.13719) by timm's operations: a pure function of (seed, sample, view)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import numpy as np
import numpy.typing as npt

from edgekd.data.counter import hashed, integers
from edgekd.data.transform import UInt8Array, image_from_pixels
from edgekd.errors import UserError

_CHOICE, _STREAM = 0x7A00, 0x7AFF
_TRANSLATION = 0.45
"""Largest shift as a share of the image, timm's own value."""
_FILL = (124, 116, 104)
"""What comes in at the edges: the mean of ImageNet."""
_OPERATIONS = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "PosterizeIncreasing",
    "SolarizeIncreasing",
    "SolarizeAdd",
    "ColorIncreasing",
    "ContrastIncreasing",
    "BrightnessIncreasing",
    "SharpnessIncreasing",
    "ShearX",
    "ShearY",
    "TranslateXRel",
    "TranslateYRel",
)
"""timm's set whose effect grows with the magnitude; each operation is applied with probability 0.5."""
_LOCK = Lock()


def rand_augmented(
    images: UInt8Array, ids: npt.NDArray[np.int64], view: int, seed: int, *, layers: int, magnitude: float
) -> UInt8Array:
    """(N, H, W, 3): each image after `layers` random operations of timm's increasing set.

    timm's operations draw from Python's global generator; it is seeded for each image and put back afterwards.

    Args:
        images: (N, H, W, 3) uint8.
        ids: (N,) sample ids; with `view` and `seed` they decide everything random.
        view: Which of the views.
        seed: The run's.
        layers: Operations per image.
        magnitude: Above 0, below 10: at 10 timm asks for a picture of no bits.

    Raises:
        UserError: Grey images, on which most of the operations say nothing.
    """
    from timm.data.auto_augment import rand_augment_ops

    if images.shape[3] != 3:
        raise UserError("RandAugment works on colour images, and these are grey.", hint="set rand_layers=0")
    hparams = {"translate_pct": _TRANSLATION, "img_mean": _FILL}
    ops = rand_augment_ops(magnitude, hparams=hparams, transforms=list(_OPERATIONS))
    chosen = np.stack([integers(ids, len(ops), seed, view, _CHOICE + layer) for layer in range(layers)], axis=1)
    seeds = hashed(ids, seed, view, _STREAM)
    out = np.empty_like(images)
    for number, pixels in enumerate(images):
        with _seeded(int(seeds[number])):
            image = image_from_pixels(pixels)
            for index in chosen[number]:
                image = ops[int(index)](image)
            out[number] = np.asarray(image)
    return out


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with _LOCK:
        state = random.getstate()
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(state)
