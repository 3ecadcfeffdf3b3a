"""Batches in a known order. The order of training is a pure function of (seed, epoch), so a run can resume anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgekd.core.preprocess import Preprocessing
from edgekd.data.counter import permutation
from edgekd.data.dataset import Split
from edgekd.data.transform import FloatArray, preprocess

_ORDER_STREAM = 0x0EDE


class Batch(NamedTuple):
    """Preprocessed images in order.

    Attributes:
        images: (N, C, H, W) float32.
        labels: (N,) int64, or None for data without labels.
        indices: (N,) int64 positions in the split.
    """

    images: FloatArray
    labels: npt.NDArray[np.int64] | None
    indices: npt.NDArray[np.int64]


def eval_batches(split: Split, p: Preprocessing, batch_size: int) -> Iterator[Batch]:
    """Every image of the split once, in order, without augmentation; the last batch may be smaller."""
    for start in range(0, len(split), batch_size):
        indices = np.arange(start, min(start + batch_size, len(split)), dtype=np.int64)
        labels = None if split.labels is None else split.labels[indices]
        yield Batch(preprocess(split.images(indices, p), p), labels, indices)


def epoch_order(n: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """(n,) int64: the order in which an epoch visits its samples, a pure function of the arguments."""
    return permutation(n, seed, epoch, _ORDER_STREAM)
