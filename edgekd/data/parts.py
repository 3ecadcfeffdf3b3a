"""What a reader hands over, whatever it read, and the rule that turns it into the three splits of a `Dataset`.

The rule. A validation set, where one is given, is halved into `select` and `test`, and nothing of `train` is used for
judging: the teacher has seen `train`, and a drop that is judged there would flatter it. A source without one is split
80/10/10, and the decisions say that the teacher may have seen all of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgekd.core.digest import Digest, digest
from edgekd.data.dataset import Dataset, Images, Split
from edgekd.data.splitting import HOLDOUT_SHARES, dealt, repeated
from edgekd.errors import UserError

Int64Array = npt.NDArray[np.int64]
PartName = Literal["train", "val", "test"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One source of images, before it is split.

    Attributes:
        images: Rows of pixels.
        keys: A hash of each row's content, in the order of the rows.
        labels: (N,) positions in `classes`, or None.
        classes: Class names; empty without labels.
        notes: Sentences for the data set's decisions.
    """

    images: Images
    keys: Sequence[bytes]
    labels: Int64Array | None
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def split(self, rows: Int64Array | None = None) -> Split:
        """These rows, or all of them."""
        chosen = np.arange(len(self.keys), dtype=np.int64) if rows is None else rows
        return Split(self.images, chosen, None if self.labels is None else self.labels[chosen])

    def content(self, rows: Int64Array | None = None) -> Digest:
        """What these rows hold: pixels and labels, in order."""
        chosen = np.arange(len(self.keys), dtype=np.int64) if rows is None else rows
        labels = None if self.labels is None else self.labels[chosen].astype("<i8").tobytes()
        return digest("split", b"".join(self.keys[int(row)] for row in chosen), labels)


def dataset_from_parts(name: str, parts: Mapping[PartName, Part], *, seed: int) -> Dataset:
    """Splits, checks and seals what was read.

    Args:
        name: For people, and in messages.
        parts: At least `train`; every part has the classes of `train`.
        seed: Another seed gives another split.

    Raises:
        UserError: One class only, labels in one part and not in another, or too few images to judge on.
    """
    train = parts["train"]
    _check(name, parts)
    notes = [note for part in parts.values() for note in part.notes]
    placed: list[tuple[Part, Int64Array | None]]
    if "val" in parts and "test" in parts:
        placed = [(train, None), (parts["val"], None), (parts["test"], None)]
        notes.append("select is the given validation set, test the given test set")
    elif len(parts) == 2:
        (other,) = (key for key in parts if key != "train")
        select, test = dealt(parts[other].keys, parts[other].labels, (0.5, 0.5), seed)
        placed = [(train, None), (parts[other], select), (parts[other], test)]
        notes.append(f"the given {other} set was halved into select and test; nothing of train is used for judging")
    else:
        placed = [(train, rows) for rows in dealt(train.keys, train.labels, HOLDOUT_SHARES, seed)]
        notes.append(
            "no validation set was given, so the images were split 80/10/10 into train, select and test; a teacher "
            "that was trained on them has seen all three, which flatters it"
        )
    for key, part in parts.items():
        if key != "train" and (shared := repeated(train.keys, part.keys)):
            notes.append(f"{shared} of {len(part.keys)} {key} images also stand in train")
    splits = [part.split(rows) for part, rows in placed]
    if min(len(split) for split in splits) == 0:
        raise UserError(
            f"Data {name}: {sum(len(part.keys) for part in parts.values())} images are too few: train, select and test "
            "need at least one each.",
            hint="give at least 3 different images per class, and better 100",
        )
    return Dataset(
        name=name,
        classes=train.classes,
        train=splits[0],
        select=splits[1],
        test=splits[2],
        digest=digest("dataset", list(train.classes), [part.content(rows) for part, rows in placed]),
        decisions=tuple(notes),
    )


def _check(name: str, parts: Mapping[PartName, Part]) -> None:
    train = parts["train"]
    for key, part in parts.items():
        if not part.keys:
            raise UserError(f"Data {name}: {key} holds no images.")
        if (part.labels is None) != (train.labels is None):
            labelled, bare = ("train", key) if part.labels is None else (key, "train")
            raise UserError(f"Data {name}: {labelled} has labels and {bare} has none.", hint="give both or neither")
    if train.labels is not None and len(np.unique(train.labels)) < 2:
        raise UserError(
            f"Data {name}: expected at least two classes, got one ({train.classes[int(train.labels[0])]!r}).",
            hint="put the images directly into the folder to use them without labels",
        )
