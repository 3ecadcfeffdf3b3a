"""A data set as a run sees it: three splits of images, one digest, and what was decided about it.

`train` is for fitting and calibrating, `select` for every decision taken inside the run, `test` for the verdict alone.
Where the images come from is the business of `sources.py`; which image goes where, of `splitting.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgekd.core.digest import Digest, Json, digest
from edgekd.core.preprocess import Preprocessing
from edgekd.data.sampling import CardSampling
from edgekd.data.transform import UInt8Array, image_from_pixels, resize_to_canvas
from edgekd.errors import EdgekdError, UserError

UNLABELLED = -1
"""Stands for the label of an image that has none, among others that have one, as in scikit-learn. Only the training
split may hold it, and only for images of a pool: data is read with labels or without, so nothing but a training ever
meets it."""

CACHE_LIMIT_BYTES = 1 << 30
"""Resized images of one source are kept in memory up to this size; beyond it they are made anew each time."""

Int64Array = npt.NDArray[np.int64]


class Images(ABC):
    """Images by row number, cut to canvases on demand and remembered while they fit into memory."""

    def __init__(self) -> None:
        self._cache: dict[tuple[Json, ...], tuple[UInt8Array, npt.NDArray[np.bool_]]] = {}

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def open(self, row: int) -> Image.Image:
        """One decoded 8-bit image.

        Raises:
            UserError: It cannot be read; the message names it.
        """

    def name(self, row: int) -> str:
        """What a person calls the image: its file, or its row where there is none."""
        return f"row {row}"

    def canvases(self, rows: Int64Array, p: Preprocessing) -> UInt8Array:
        """(N, Hc, Wc, C) uint8: the rows, resized and cropped to the canvas of `p`."""
        shape = (*p.canvas, p.channels)
        if len(self) * int(np.prod(shape)) > CACHE_LIMIT_BYTES:
            return self._made(rows, p)
        key = (*p.canvas, *p.size, p.interpolation, p.channels)
        if key not in self._cache:
            self._cache = {key: (np.empty((len(self), *shape), dtype=np.uint8), np.zeros(len(self), dtype=np.bool_))}
        pixels, known = self._cache[key]
        missing = np.unique(rows[~known[rows]])
        if len(missing):
            pixels[missing] = self._made(missing, p)
            known[missing] = True
        return pixels[rows]

    def _made(self, rows: Int64Array, p: Preprocessing) -> UInt8Array:
        out = np.empty((len(rows), *p.canvas, p.channels), dtype=np.uint8)
        for position, row in enumerate(rows):
            out[position] = resize_to_canvas(self.open(int(row)), p)
        return out


class ArrayImages(Images):
    """Images of one size in one array.

    Args:
        pixels: (N, H, W, C) uint8 with C 1 or 3.
    """

    def __init__(self, pixels: UInt8Array) -> None:
        super().__init__()
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def open(self, row: int) -> Image.Image:
        return image_from_pixels(self.pixels[row])

    def canvases(self, rows: Int64Array, p: Preprocessing) -> UInt8Array:
        if self.pixels.shape[1:] == (*p.canvas, p.channels):
            return self.pixels[rows]
        return super().canvases(rows, p)


class JoinedImages(Images):
    """The rows of one source, then those of another.

    Args:
        first: Its rows keep their numbers.
        second: Its row r becomes `len(first) + r`.
    """

    def __init__(self, first: Images, second: Images) -> None:
        super().__init__()
        self._first, self._second = first, second

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    def open(self, row: int) -> Image.Image:
        own = row < len(self._first)
        return self._first.open(row) if own else self._second.open(row - len(self._first))

    def name(self, row: int) -> str:
        own = row < len(self._first)
        return self._first.name(row) if own else self._second.name(row - len(self._first))

    def canvases(self, rows: Int64Array, p: Preprocessing) -> UInt8Array:
        own = rows < len(self._first)
        out = np.empty((len(rows), *p.canvas, p.channels), dtype=np.uint8)
        out[own] = self._first.canvases(rows[own], p)
        out[~own] = self._second.canvases(rows[~own] - len(self._first), p)
        return out


class Split:
    """A part of a data set: rows of a source in a fixed order.

    Args:
        source: Where the images are.
        rows: (N,) rows of the source that belong to the split.
        labels: (N,) class numbers in the order of `rows`, `UNLABELLED` for an image without one; None for data without
            labels.
    """

    def __init__(self, source: Images, rows: Int64Array, labels: Int64Array | None) -> None:
        self._source = source
        self._rows = rows
        self.labels = labels

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def partly_labelled(self) -> bool:
        """Whether it has labels, but not of all its images."""
        return self.labels is not None and bool((self.labels == UNLABELLED).any())

    def images(self, indices: Sequence[int] | Int64Array, p: Preprocessing) -> UInt8Array:
        """(N, Hc, Wc, C) uint8 canvases, ready for `preprocess` or `augmented`.

        Args:
            indices: Positions in the split.
            p: Decides the canvas, how to resize to it, and grey or colour.

        Raises:
            UserError: An image cannot be read; the message names it.
        """
        return self._source.canvases(self._rows[np.asarray(indices, dtype=np.int64)], p)

    def names(self, indices: Sequence[int] | Int64Array) -> tuple[str, ...]:
        """What a person calls these images: a file, or a row of an array."""
        return tuple(self._source.name(int(row)) for row in self._rows[np.asarray(indices, dtype=np.int64)])

    def subset(self, indices: Sequence[int] | Int64Array) -> Split:
        """The split reduced to these positions, in this order."""
        chosen = np.asarray(indices, dtype=np.int64)
        return Split(self._source, self._rows[chosen], None if self.labels is None else self.labels[chosen])

    def followed_by(self, other: Split) -> Split:
        """The images of this split and then those of another; where one of them alone has labels, partly labelled."""
        source = JoinedImages(self._source, other._source)
        unlabelled = self.labels is None and other.labels is None
        labels = None if unlabelled else np.concatenate([self._numbers(), other._numbers()])
        return Split(source, np.concatenate([self._rows, len(self._source) + other._rows]), labels)

    def _numbers(self) -> Int64Array:
        """Its labels, or `UNLABELLED` for each image."""
        return np.full(len(self), UNLABELLED, dtype=np.int64) if self.labels is None else self.labels

    def labelled(self, labels: Int64Array | None) -> Split:
        """The same images with other labels, or none."""
        return Split(self._source, self._rows, labels)

    def relabelled(self, numbers: Int64Array) -> Split:
        """The same images with label k turned into `numbers[k]`; those without a label stay without."""
        if self.labels is None:
            return self
        turned = np.where(self.labels == UNLABELLED, UNLABELLED, numbers[self.labels])
        return Split(self._source, self._rows, turned)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A resource of runs: its digest enters the keys of the stages that read `"data"`.

    Attributes:
        name: For people; not part of the digest.
        classes: Class names in the order of the label numbers; empty without labels.
        train: For fitting and for calibration; wholly labelled or not at all, but for what `trained_on_pool` adds.
        select: For choosing between candidates. It and `test` have labels of all their images, or none.
        test: For the verdict; nothing is chosen on it.
        digest: Over every image, every label, the class names and the splits.
        decisions: Sentences on how it was read and split.
        pool: Further images without labels, of which a teacher may choose some to train on; None without any. They are
            part of the digest.
        without_pool: The digest that the same data has without its pool; None where there is no pool.
        calibration: How its card would have samples drawn; None without a card that says so. It changes no image, so
            it is not part of the digest.
        guessed: How many images at the end of `train` came from a pool, so that their labels are a teacher's guesses.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    select: Split
    test: Split
    digest: Digest
    decisions: tuple[str, ...] = field(default=())
    pool: Split | None = None
    without_pool: Digest | None = None
    calibration: CardSampling | None = None
    guessed: int = 0

    def __post_init__(self) -> None:
        for name, split in (("select", self.select), ("test", self.test)):
            if split.partly_labelled:
                raise EdgekdError(f"Data {self.name}: images of {name} have no label, and nothing is judged on those.")

    @property
    def labelled(self) -> bool:
        """Whether there are labels; without them only agreement with a teacher can be judged."""
        return self.train.labels is not None

    @property
    def own_digest(self) -> Digest:
        """Of the data itself, whatever stands beside it: what a later look at the same data has."""
        return self.without_pool or self.digest

    def with_classes(self, names: Sequence[str]) -> Dataset:
        """The same images with labels numbered as in `names`, the order of a model's logits.

        Data without class names of its own has numbers for them, and those are taken as positions of the logits.

        Args:
            names: All classes of the data, and possibly more.

        Raises:
            UserError: The data has a class that `names` lacks.
        """
        if not self.labelled or tuple(names) == self.classes:
            return self
        unknown = [name for name in self.classes if name not in names]
        numbered = self.classes == tuple(str(number) for number in range(len(names)))
        if unknown and numbered:
            return self._renumbered(
                names,
                np.arange(len(names), dtype=np.int64),
                f"label numbers were taken as positions of the model's logits: 0 is {names[0]!r}",
            )
        if unknown:
            raise UserError(
                f"Data {self.name}: the model does not know the classes {', '.join(unknown[:8])} "
                f"(it knows: {', '.join(list(names)[:8])} ...).",
                hint="rename the class folders as the model names its classes",
            )
        numbers = np.array([list(names).index(name) for name in self.classes], dtype=np.int64)
        return self._renumbered(
            names, numbers, f"labels were renumbered to the {len(names)} classes of the model, by name"
        )

    def check_classes(self, count: int) -> None:
        """Makes sure that a model's logits and the classes are as many; data without labels fits any model.

        Args:
            count: K of the model.

        Raises:
            UserError: They are not.
        """
        if self.labelled and count != len(self.classes):
            names = ", ".join(self.classes[:5]) + (", ..." if len(self.classes) > 5 else "")
            raise UserError(
                f"The model has {count} classes, but the data {self.name} has {len(self.classes)} ({names}).",
                hint="give data with all classes that the model was trained on, or images without labels",
            )

    def _renumbered(self, names: Sequence[str], numbers: Int64Array, decision: str) -> Dataset:
        """Label k turned into `numbers[k]`, a position in `names`."""
        return replace(
            self,
            classes=tuple(names),
            train=self.train.relabelled(numbers),
            select=self.select.relabelled(numbers),
            test=self.test.relabelled(numbers),
            digest=digest("dataset-classes", self.digest, list(names)),
            without_pool=None
            if self.without_pool is None
            else digest("dataset-classes", self.without_pool, list(names)),
            decisions=(*self.decisions, decision),
        )

    def with_pool(self, pool: Split, content: Digest, decision: str) -> Dataset:
        """The same data beside a pool.

        Args:
            pool: Without labels.
            content: Over its images.
            decision: One sentence on where it comes from.
        """
        return replace(
            self,
            pool=pool.labelled(None),
            without_pool=self.digest,
            digest=digest("dataset-pool", self.digest, content),
            decisions=(*self.decisions, decision),
        )

    def trained_on_pool(self, rows: Int64Array, labels: Int64Array | None) -> Dataset:
        """The same data with some images of the pool added to the training split; nothing else changes.

        Args:
            rows: (M,) positions in the pool.
            labels: (M,) what the teacher takes them for; None adds them without a label. Data without labels has no use
                for them.

        Raises:
            UserError: There is no pool.
        """
        if self.pool is None:
            raise UserError(
                f"Images of a pool were chosen, but the data {self.name} has none.",
                hint="give the images without labels again: --unlabelled FOLDER_OR_NPZ",
            )
        chosen = self.pool.subset(rows).labelled(labels if self.labelled else None)
        marks = None if labels is None else labels.astype("<i8").tobytes()
        return replace(
            self,
            train=self.train.followed_by(chosen),
            guessed=self.guessed + len(rows),
            digest=digest("dataset-pooled", self.digest, rows.astype("<i8").tobytes(), marks),
        )

    def describe(self) -> dict[str, Json]:
        """Plain facts for a report."""
        return {
            "name": self.name,
            "labelled": self.labelled,
            "classes": len(self.classes),
            "train": len(self.train),
            "select": len(self.select),
            "test": len(self.test),
            "digest": self.digest,
            "decisions": list(self.decisions),
        }
