"""A teacher's signals on every view of every training image, made once and shared by all students.

`TeacherCache` keeps outputs for the length of one training; these are an artifact of the graph: bound to teacher, data
and views, kept in the store, and read by each branch and each later run. As a rule they are logits, computed by the
exported teacher in an inference runtime; objectives that look inside get what a `teach` node was told to keep.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from edgekd.core.blobs import Blobs
from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.digest import Digest, digest
from edgekd.core.preprocess import Preprocessing
from edgekd.core.schema import Schema
from edgekd.data.augment import Augment
from edgekd.data.dataset import Dataset
from edgekd.errors import UserError
from edgekd.train.config import TrainConfig
from edgekd.train.reconcile import class_order
from edgekd.train.signal import TAPPED, Signal

_FLOAT32_BYTES = 4
_MIB = 1 << 20
TAG = "answers"


class AnswersSpec(Schema):
    """Whose answers these are, and on which pixels; a training that differs in any of it must not use them.

    Attributes:
        views: Number of views.
        augment: How a view differs from the image.
        preprocessing: Digest of the pixels that a network's preprocessing takes, whatever it normalises them to.
        data: Digest of the data set.
        seed: Of the views.
        teacher: `teacher_digest` of who answered; None where that is unknown, as for logits from a file.
        labels: Names of the classes in the order of the logits; empty where they have none.
    """

    views: int = Field(ge=1)
    augment: Augment
    preprocessing: Digest
    data: Digest
    seed: int
    teacher: Digest | None = None
    labels: tuple[str, ...] = ()


def teacher_digest(teacher: ModelBundle) -> Digest:
    """What stands for a teacher: an exported graph, of any precision, is the network that it came from."""
    network = teacher.tags.get("model")
    return Digest(network) if teacher.kind is BundleKind.ONNX and isinstance(network, str) else teacher.content


def pixels_digest(p: Preprocessing) -> Digest:
    """Of all in a preprocessing that decides which pixels a network sees; normalisation is its own business."""
    return digest("pixels", list(p.input_shape), list(p.canvas), p.interpolation)


def answers_spec(
    config: TrainConfig,
    p: Preprocessing,
    dataset: Dataset,
    seed: int,
    teacher: ModelBundle | None,
    labels: tuple[str, ...] = (),
) -> AnswersSpec:
    """What a training with `config` would need.

    Args:
        config: The options.
        p: The student's.
        dataset: Of the training.
        seed: Of the run.
        teacher: The one that is connected beside the answers; None takes those of any teacher.
        labels: Names of the student's classes, in its order.

    Raises:
        UserError: It shows a new view in each epoch, which nobody can have stored.
    """
    views = config.repeated_views
    if not views:
        raise UserError(
            "The teacher's stored answers are of certain views of the images, but teacher_views is 0: each epoch shows "
            "a new view.",
            hint="set teacher_views to the number of views that are stored",
        )
    return AnswersSpec(
        views=views,
        augment=config.augment,
        preprocessing=pixels_digest(p),
        data=dataset.digest,
        seed=seed,
        teacher=None if teacher is None else teacher_digest(teacher),
        labels=labels,
    )


def answers_file(name: str) -> str:
    """The file of one signal, by its name in `Signals.flat`."""
    return f"{name}.npy"


def views_that_fit(shapes: Mapping[str, tuple[int, ...]], samples: int, views: int, capacity_mib: float | None) -> int:
    """How many of `views` views fit, float32, for signals of these shapes per image; all without a capacity."""
    if capacity_mib is None:
        return views
    per_view = sum(math.prod(shape) for shape in shapes.values()) * samples * _FLOAT32_BYTES
    return min(views, int(capacity_mib * _MIB // per_view))


class Answers:
    """Stored signals of a teacher, memory-mapped.

    Args:
        paths: NumPy files (views, samples, ...) float32 by the names of `Signals.flat`.
        views: How many views there are; those beyond what is stored belong to a live teacher.

    Attributes:
        views: Number of views.
        stored: Number of views that are stored, the first ones.
    """

    def __init__(self, paths: Mapping[str, Path], views: int) -> None:
        self._arrays: dict[str, npt.NDArray[np.float32]] = {
            name: np.load(path, mmap_mode="r", allow_pickle=False) for name, path in paths.items()
        }
        self.views = views
        self.stored = min((len(array) for array in self._arrays.values()), default=0)

    @property
    def classes(self) -> int:
        """K."""
        return int(self._arrays[Signal.LOGITS].shape[2])

    def lacks(self, needs: frozenset[Signal]) -> tuple[str, ...]:
        """What is needed of a teacher and is not stored; its classifier is the same for all images and never is."""
        held = {name.partition(".")[0] for name in self._arrays}
        wanted = (needs & TAPPED) - {Signal.CLASSIFIER} | {Signal.LOGITS}
        return tuple(sorted({str(signal) for signal in wanted} - held))

    def read(self, view: int, ids: npt.NDArray[np.int64]) -> dict[str, Tensor]:
        """The signals of some samples of a view, on the CPU."""
        return {name: torch.from_numpy(np.asarray(array[view])[ids]) for name, array in self._arrays.items()}


def bundle_from_answers(paths: Mapping[str, Path], spec: AnswersSpec, blobs: Blobs) -> ModelBundle:
    """A DATA bundle of the files that `Answers` reads."""
    files = {answers_file(name): blobs.add(path) for name, path in paths.items()}
    return ModelBundle(kind=BundleKind.DATA, files=files, tags={TAG: spec.plain()})


def answers_from_bundle(bundle: ModelBundle, wanted: AnswersSpec, blobs: Blobs) -> Answers:
    """The answers in a bundle, when they belong to the teacher and to the pixels of a training.

    Raises:
        UserError: Another teacher, other data, views, augmentation, preprocessing or seed, other classes or the same in
            another order, or no answers at all.
    """
    if TAG not in bundle.tags:
        raise UserError("The port 'answers' takes what a `teach` node makes, and this is other data.")
    found = AnswersSpec.parse(bundle.tags[TAG], "teacher answers")
    if None not in (found.teacher, wanted.teacher) and found.teacher != wanted.teacher:
        raise UserError(
            f"The stored answers are those of another teacher ({found.teacher}) than the connected one "
            f"({wanted.teacher}).",
            hint="connect the teacher that the teach node asks, or disconnect 'answers'",
        )
    if class_order(found.labels, wanted.labels) is not None:
        raise UserError(
            "The stored answers are in the teacher's order of the classes, and the student has another.",
            hint="disconnect 'answers': the training then asks the teacher and turns its logits",
        )
    fields = [name for name in AnswersSpec.model_fields if name not in ("teacher", "labels")]
    differing = ", ".join(name for name in fields if getattr(found, name) != getattr(wanted, name))
    if differing:
        raise UserError(
            f"The teacher's stored answers do not belong to this training: {differing} differ.",
            hint="give the teach node and the distill node the same views and augment, or disconnect 'answers'",
        )
    paths = {name.removesuffix(".npy"): blobs.path(bundle.file(name)) for name in bundle.files}
    return Answers(paths, found.views)
