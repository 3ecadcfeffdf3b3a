"""Draws the samples that ranges are calibrated on: from `train` alone, repeatable, and sealed by a digest."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from edgekd.core.digest import Digest, digest
from edgekd.core.preprocess import Preprocessing
from edgekd.data.counter import hashed
from edgekd.data.dataset import Dataset
from edgekd.data.sampling import SamplingMethod
from edgekd.data.transform import FloatArray, preprocess
from edgekd.errors import UserError

__all__ = ["CalibrationSamples", "SamplingMethod", "calibration_samples"]

_DRAW_STREAM = 0xCA11

Int64Array = npt.NDArray[np.int64]


class CalibrationSamples(NamedTuple):
    """Preprocessed samples.

    Attributes:
        images: (N, C, H, W) float32.
        labels: (N,) int64, or None.
        description: One sentence on where they come from.
    """

    images: FloatArray
    labels: Int64Array | None
    description: str

    @property
    def digest(self) -> Digest:
        """Over what a calibration sees: the preprocessed values themselves, in order, and their labels."""
        labels = None if self.labels is None else self.labels.astype("<i8").tobytes()
        return digest("calibration", list(self.images.shape), self.images.astype("<f4").tobytes(), labels)


def calibration_samples(
    dataset: Dataset,
    p: Preprocessing,
    *,
    samples: int,
    seed: int,
    method: Literal["random", "stratified"] = "stratified",
) -> CalibrationSamples:
    """Samples of `train`, preprocessed without augmentation, the classes mixed.

    Args:
        dataset: Only its train split is touched: what is judged on must not tune the ranges.
        p: The model's preprocessing.
        samples: How many; all of train when it has fewer, which the description says.
        seed: Another seed draws other samples.
        method: `stratified` takes the classes in turn; `random` and data without labels ignore them.

    Raises:
        UserError: `samples` below 1, or an unreadable image.
    """
    if samples < 1:
        raise UserError(f"Calibration: expected at least 1 sample, got {samples}.")
    train = dataset.train
    drawn = drawn_order(len(train), seed)
    stratified = method == "stratified" and train.labels is not None
    if stratified and train.labels is not None:
        drawn = drawn[_turns(train.labels[drawn])]
    how = "stratified by class" if stratified else "at random"
    return samples_at(dataset, p, drawn[:samples], asked=samples, how=f"drawn {how} with seed {seed}")


def samples_at(dataset: Dataset, p: Preprocessing, rows: Int64Array, *, asked: int, how: str) -> CalibrationSamples:
    """The samples of these rows of `train`, in their order.

    Args:
        dataset: The images.
        p: The model's preprocessing.
        rows: Positions in the training split.
        asked: How many were asked for; said where there are fewer.
        how: They were chosen, as the end of a sentence.
    """
    train, found = dataset.train, len(rows)
    short = f" ({asked} were asked for)" if found < asked else ""
    description = f"{found} of {len(train)} training images of {dataset.name}{short}, {how}"
    labels = None if train.labels is None else train.labels[rows]
    return CalibrationSamples(preprocess(train.images(rows, p), p), labels, description)


def drawn_order(n: int, seed: int) -> Int64Array:
    """(n,) positions in the order in which a calibration draws them at random."""
    return np.argsort(hashed(np.arange(n, dtype=np.int64), seed, _DRAW_STREAM), kind="stable").astype(np.int64)


def _turns(labels: Int64Array) -> Int64Array:
    """Positions ordered so that every class has its first sample before any has its second, and so on."""
    turn = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        turn[members] = np.arange(len(members))
    return np.argsort(turn, kind="stable").astype(np.int64)
