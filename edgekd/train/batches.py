"""Training batches as a pure function of (seed, epoch, step), made one step ahead in a thread.

Nothing here has a position to save: an epoch can be entered at any step, and gives the batches it would have given.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgekd.core.preprocess import Preprocessing
from edgekd.data.augment import Augment, augmented
from edgekd.data.batches import epoch_order
from edgekd.data.dataset import UNLABELLED, Split
from edgekd.errors import UserError

MIN_SHARD = 2
"""Samples per process and pass; BatchNorm has no variance over one."""


@dataclass(frozen=True)
class TrainBatch:
    """One process's share of a batch.

    Attributes:
        images: (n, C, H, W) float32, on the training device.
        labels: (n,) int64 on the training device, or None.
        ids: (n,) positions in the split.
    """

    images: Tensor
    labels: Tensor | None
    ids: npt.NDArray[np.int64]

    def parts(self, number: int) -> list[TrainBatch]:
        """The batch cut into micro-batches whose sizes differ by at most one; labels may be shares, (n, K)."""
        if number == 1:
            return [self]
        rows = np.array_split(np.arange(len(self.ids)), number)
        spans = [slice(int(part[0]), int(part[-1]) + 1) for part in rows]
        return [
            TrainBatch(self.images[span], None if self.labels is None else self.labels[span], self.ids[span])
            for span in spans
        ]


@dataclass(frozen=True, kw_only=True)
class TrainBatches:
    """The batches of a training.

    Every sample is visited once per epoch. The epoch is cut into batches whose sizes differ by at most one, so there is
    no small last batch to drop, to weight or to upset BatchNorm. Where few samples have a label, they are spread over
    the batches as evenly as they can be: the cross-entropy is a mean over those of a batch.

    Attributes:
        split: The training images.
        preprocessing: The network's.
        augment: How images vary.
        seed: Decides the order and the augmentation.
        batch_size: Largest batch, over all processes.
        device: Where the tensors go.
        channels_last: Their memory format.
        rank: This process.
        world: Number of processes.
        accumulate: Into how many micro-batches each process will cut its share of a batch.
        rows: Positions of the split that are visited, ascending; None for all of them.
    """

    split: Split
    preprocessing: Preprocessing
    augment: Augment
    seed: int
    batch_size: int
    device: torch.device
    channels_last: bool
    rank: int = 0
    world: int = 1
    accumulate: int = 1
    rows: npt.NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if min(self.samples, self.batch_size) < self._smallest:
            cut = "" if self.accumulate == 1 else f" and {self.accumulate} micro-batches in each"
            raise UserError(
                f"Batches of {self.batch_size} from {self.samples} training images are too small for {self.world} "
                f"process(es){cut}: each needs at least {self._smallest // self.world} images per step.",
                hint="give more training images, a larger batch_size, fewer processes, or a smaller accumulate",
            )

    @property
    def samples(self) -> int:
        """Images per epoch, over all processes."""
        return len(self.split) if self.rows is None else len(self.rows)

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch; one less where a batch would otherwise be too small for the processes."""
        return min(-(-self.samples // self.batch_size), self.samples // self._smallest)

    @property
    def _smallest(self) -> int:
        """Images that a batch needs, over all processes."""
        return MIN_SHARD * self.world * self.accumulate

    def epoch(self, epoch: int, view: int, first: int = 0) -> Iterator[TrainBatch]:
        """The batches of an epoch from number `first` on, showing one view of each image."""
        shares = self._shares(epoch)[first:]
        with ThreadPoolExecutor(1, thread_name_prefix="edgekd-batches") as thread:
            ahead = thread.submit(self._pixels, shares[0], view) if shares else None
            for number, ids in enumerate(shares):
                assert ahead is not None
                pixels = ahead.result()
                if number + 1 < len(shares):
                    ahead = thread.submit(self._pixels, shares[number + 1], view)
                yield self._batch(pixels, ids)

    def batch(self, number: int) -> TrainBatch:
        """The batch of a number that is counted through all epochs from 0, showing view 0 of its images."""
        epoch, step = divmod(number, self.steps_per_epoch)
        ids = self._shares(epoch)[step]
        return self._batch(self._pixels(ids, 0), ids)

    def _shares(self, epoch: int) -> list[npt.NDArray[np.int64]]:
        """This process's part of each batch of an epoch, as positions in the split."""
        order = epoch_order(self.samples, self.seed, epoch)
        order = order if self.rows is None else self.rows[order]
        if self.split.labels is not None and self.split.partly_labelled:
            order = evenly_mixed(order, self.split.labels != UNLABELLED)
        return [np.array_split(ids, self.world)[self.rank] for ids in np.array_split(order, self.steps_per_epoch)]

    def _pixels(self, ids: npt.NDArray[np.int64], view: int) -> npt.NDArray[np.float32]:
        canvases = self.split.images(ids, self.preprocessing)
        return augmented(canvases, ids, view, self.preprocessing, self.augment, self.seed)

    def _batch(self, pixels: npt.NDArray[np.float32], ids: npt.NDArray[np.int64]) -> TrainBatch:
        images = torch.from_numpy(pixels)
        labels = None if self.split.labels is None else torch.from_numpy(self.split.labels[ids])
        if self.device.type == "cuda":
            images = images.pin_memory().to(self.device, non_blocking=True)
            labels = None if labels is None else labels.pin_memory().to(self.device, non_blocking=True)
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return TrainBatch(images, labels, ids)


def evenly_mixed(order: npt.NDArray[np.int64], chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """The order with the chosen samples spread evenly over it; among themselves they stay in order, as do the others.

    Args:
        order: (N,) sample numbers.
        chosen: (N,) by sample number.
    """
    marks = chosen[order]
    places = np.empty(len(order))
    for mark in (marks, ~marks):
        places[mark] = (np.arange(int(mark.sum())) + 0.5) / max(1, int(mark.sum()))
    return order[np.argsort(places, kind="stable")]
