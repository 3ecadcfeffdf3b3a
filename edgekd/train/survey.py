"""What an objective learns of the training data before the first step, without knowing where it comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from edgekd.errors import EdgekdError
from edgekd.train.signal import Signals


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The training split.

    Attributes:
        samples: Number of images; sample ids are below it.
        classes: K of the networks.
        labels: (samples,) int64 on the CPU, by sample id; None without labels. `UNLABELLED` for a sample without one,
            which only objectives meet that take unlabelled images.
    """

    samples: int
    classes: int
    labels: Tensor | None = None


class SurveyBatch(NamedTuple):
    """Some samples without augmentation.

    Attributes:
        teacher: What the teacher says, at least float32, without gradients.
        labels: (N,) int64, on the teacher's device; None without labels, `UNLABELLED` for a sample without one.
        ids: (N,) int64, on the teacher's device.
    """

    teacher: Signals
    labels: Tensor | None
    ids: Tensor


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The teacher's signals on the images that are trained on: the whole training split, or what is not held out of it.

    Attributes:
        batches: Begins a pass over these samples in order; the teacher runs while it is iterated.
    """

    batches: Callable[[], Iterator[SurveyBatch]]


def _embedding(said: Signals) -> Tensor | None:
    return said.embedding


def class_means(survey: Survey, classes: int, of: Callable[[Signals], Tensor | None] = _embedding) -> Tensor:
    """(K, D) float32 on the CPU: the mean over each class of what the teacher says; 0 for a class without samples.

    Args:
        survey: The teacher.
        classes: K.
        of: (N, D) of a batch's signals; the embedding unless it is given.

    Raises:
        EdgekdError: That, or the labels, are not there: the objective did not declare that it needs them.
    """
    sums: Tensor | None = None
    counts = torch.zeros(classes, dtype=torch.float64)
    for batch in survey.batches():
        values, labels = of(batch.teacher), batch.labels
        if values is None or labels is None:
            raise EdgekdError("Class means need embeddings and labels, and the objective did not declare both.")
        if sums is None:
            sums = torch.zeros(classes, values.shape[1], dtype=torch.float64)
        sums.index_add_(0, labels.cpu(), values.cpu().double())
        counts += torch.bincount(labels.cpu(), minlength=classes)
    if sums is None:
        raise EdgekdError("Class means need at least one sample.")
    return (sums / counts.clamp_min(1)[:, None]).float()
