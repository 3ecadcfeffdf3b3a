"""Draws the samples that ranges are calibrated on: from `train` alone, repeatable, and sealed by a digest."""

from __future__ import annotations

from typing import NamedTuple

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
    dataset: Dataset, p: Preprocessing, *, samples: int, seed: int, method: SamplingMethod = "stratified"
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
    drawn = np.argsort(hashed(np.arange(len(train), dtype=np.int64), seed, _DRAW_STREAM), kind="stable")
    stratified = method == "stratified" and train.labels is not None
    if stratified and train.labels is not None:
        drawn = drawn[_turns(train.labels[drawn])]
    rows = drawn[:samples].astype(np.int64)
    found = len(rows)
    how = "stratified by class" if stratified else "at random"
    short = f" ({samples} were asked for)" if found < samples else ""
    description = f"{found} of {len(train)} training images of {dataset.name}{short}, drawn {how} with seed {seed}"
    labels = None if train.labels is None else train.labels[rows]
    return CalibrationSamples(preprocess(train.images(rows, p), p), labels, description)


def _turns(labels: Int64Array) -> Int64Array:
    """Positions ordered so that every class has its first sample before any has its second, and so on."""
    turn = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        turn[members] = np.arange(len(members))
    return np.argsort(turn, kind="stable").astype(np.int64)
