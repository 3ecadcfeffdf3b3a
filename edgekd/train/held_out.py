"""Which training images are held out of a training, for something else than the student's weights to learn on.

They come from the training split. `select` decides about candidates and `test` about the verdict, so nothing that is
trained may look at either.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekd.data.counter import permutation, uniform
from edgekd.data.dataset import Dataset
from edgekd.errors import UserError

_ORDER, _OFFSET = 0x4E1D, 0x4E1E

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """A training split in two parts.

    Attributes:
        kept: (M,) ascending positions in the split: the student is trained on these.
        rows: (L,) ascending positions of the others.
    """

    kept: Int64Array
    rows: Int64Array


def held_out(dataset: Dataset, share: float, seed: int, *, processes: int) -> HeldOut:
    """About `share` of the labelled training images, of each class alike; a pure function of data and seed.

    Images whose label is the teacher's guess, those of a pool, are not held out: nobody could learn from them when the
    teacher is wrong. The last image of a class stays in the training.

    Args:
        dataset: With labels.
        share: Of the images that can be held out, in (0, 1).
        seed: Decides which.
        processes: How many share a batch; each needs two images.

    Raises:
        UserError: There are no labels, or the part would be too small: fewer images than there are classes, or than
            the processes need.
    """
    split = dataset.train
    if split.labels is None:
        raise UserError("Images are held out so that their labels judge the training, and the data has no labels.")
    own = np.flatnonzero(split.labels[: len(split) - dataset.guessed] >= 0)
    labels = split.labels[own]
    rows = own[_evenly(labels, round(share * len(own)), seed)]
    classes = len(np.unique(labels))
    least = max(classes, 2 * processes)
    if len(rows) < least:
        raise UserError(
            f"Of {len(own)} labelled training images, {share:.3g} are {len(rows)} to hold out, too few to learn from: "
            f"{classes} classes and {processes} process(es) need at least {least}.",
            hint="raise held_out in the objective's args, give more images, or choose an objective that holds none "
            "out: edgekd objectives",
        )
    return HeldOut(kept=np.setdiff1d(np.arange(len(split), dtype=np.int64), rows), rows=rows)


def _evenly(labels: Int64Array, count: int, seed: int) -> Int64Array:
    """At most `count` ascending positions: from each class its share, rounded up or down by chance, never all of it."""
    order = permutation(len(labels), seed, _ORDER)
    places = np.full(len(labels), np.inf)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        offset = uniform(np.array([label], dtype=np.int64), seed, _OFFSET)[0]
        places[members[:-1]] = (np.arange(len(members) - 1) + offset) / len(members)
    chosen = np.argsort(places, kind="stable")[:count]
    return np.sort(chosen[np.isfinite(places[chosen])]).astype(np.int64)
