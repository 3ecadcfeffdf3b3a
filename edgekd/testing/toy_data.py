"""A tiny data set that a tiny network can learn: coloured blobs on noise, one colour and place per class."""

from __future__ import annotations

import numpy as np

from edgekd.data.dataset import Dataset
from edgekd.data.sources import dataset_from_arrays


def toy_dataset(
    *, classes: int = 4, n: int = 64, size: int = 8, channels: int = 3, labelled: bool = True, seed: int = 0
) -> Dataset:
    """A data set of `n` images of `size` x `size` pixels, split 80/10/10 as any single source is.

    Args:
        classes: Number of classes, dealt out evenly.
        n: Images in all; at least 3 per class, so that every split has each class.
        size: Height and width in pixels.
        channels: 1 or 3.
        labelled: Whether labels are given.
        seed: Other images and another split.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(n, dtype=np.int64) % classes
    colours = np.random.default_rng(classes).integers(60, 256, size=(classes, channels))
    angle = 2 * np.pi * labels / classes + rng.normal(0, 0.2, n)
    centre = (size - 1) / 2 + size / 4 * np.stack([np.sin(angle), np.cos(angle)], axis=1)
    rows, cols = np.mgrid[:size, :size]
    distance = (rows - centre[:, :1, None]) ** 2 + (cols - centre[:, 1:, None]) ** 2
    blob = np.exp(-distance / (2 * (size / 6) ** 2))[..., None] * colours[labels][:, None, None, :]
    images = np.clip(blob + rng.normal(24, 12, (n, size, size, channels)), 0, 255).astype(np.uint8)
    return dataset_from_arrays("toy", images, labels if labelled else None, seed=seed)
