"""A teacher's logits on every view of every training image, made once and shared by all students.

`TeacherCache` keeps outputs for the length of one training; these are an artifact of the graph: computed by the
exported teacher in an inference runtime, which is several times faster than PyTorch on a CPU, and reused by each branch
and each later run. They hold logits alone, so objectives that need embeddings or maps still ask a live teacher.
"""

from __future__ import annotations

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
from edgekd.train.signal import Signal

ANSWERS_FILE = "logits.npy"
TAG = "answers"


class AnswersSpec(Schema):
    """Which pixels the answers belong to; a training that differs in any of it must not use them.

    Attributes:
        views: Number of views.
        augment: How a view differs from the image.
        preprocessing: Digest of the pixels that a network's preprocessing takes, whatever it normalises them to.
        data: Digest of the data set.
        seed: Of the views.
    """

    views: int = Field(ge=1)
    augment: Augment
    preprocessing: Digest
    data: Digest
    seed: int


def pixels_digest(p: Preprocessing) -> Digest:
    """Of all in a preprocessing that decides which pixels a network sees; normalisation is its own business."""
    return digest("pixels", list(p.input_shape), list(p.canvas), p.interpolation)


def answers_spec(config: TrainConfig, p: Preprocessing, dataset: Dataset, seed: int) -> AnswersSpec:
    """What a training with `config` would need.

    Raises:
        UserError: It shows a new view in each epoch, which nobody can have stored.
    """
    if not config.teacher_views and config.augment != Augment():
        raise UserError(
            "The teacher's stored answers are of certain views of the images, but teacher_views is 0: each epoch shows "
            "a new view.",
            hint="set teacher_views to the number of views that are stored",
        )
    return AnswersSpec(
        views=max(1, config.teacher_views),
        augment=config.augment,
        preprocessing=pixels_digest(p),
        data=dataset.digest,
        seed=seed,
    )


class Answers:
    """Stored logits, memory-mapped.

    Args:
        path: A NumPy file (views, samples, K) float32.
    """

    def __init__(self, path: Path) -> None:
        self._logits: npt.NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)

    @property
    def views(self) -> int:
        """Number of views."""
        return int(self._logits.shape[0])

    @property
    def classes(self) -> int:
        """K."""
        return int(self._logits.shape[2])

    @property
    def samples(self) -> int:
        """Images per view."""
        return int(self._logits.shape[1])

    def read(self, view: int, ids: npt.NDArray[np.int64]) -> dict[str, Tensor]:
        """(n, K) logits of some samples of a view, on the CPU."""
        return {str(Signal.LOGITS): torch.from_numpy(np.asarray(self._logits[view])[ids])}


def bundle_from_answers(path: Path, spec: AnswersSpec, blobs: Blobs) -> ModelBundle:
    """A DATA bundle of the file that `Answers` reads."""
    return ModelBundle(kind=BundleKind.DATA, files={ANSWERS_FILE: blobs.add(path)}, tags={TAG: spec.plain()})


def answers_from_bundle(bundle: ModelBundle, wanted: AnswersSpec, blobs: Blobs) -> Answers:
    """The answers in a bundle, when they belong to the pixels that a training will see.

    Raises:
        UserError: Other data, views, augmentation, preprocessing or seed, or no answers at all.
    """
    if TAG not in bundle.tags:
        raise UserError("The port 'answers' takes what a `teach` node makes, and this is other data.")
    found = AnswersSpec.parse(bundle.tags[TAG], "teacher answers")
    if found != wanted:
        differing = ", ".join(
            name for name in AnswersSpec.model_fields if getattr(found, name) != getattr(wanted, name)
        )
        raise UserError(
            f"The teacher's stored answers do not belong to this training: {differing} differ.",
            hint="give the teach node and the distill node the same views and augment, or disconnect 'answers'",
        )
    return Answers(bundle_path(bundle, blobs))


def bundle_path(bundle: ModelBundle, blobs: Blobs) -> Path:
    """Where the logits of an answers bundle lie."""
    return blobs.path(bundle.file(ANSWERS_FILE))
