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
    """The teacher's signals on the whole training split.

    Attributes:
        batches: Begins a pass over all samples in order; the teacher runs while it is iterated.
    """

    batches: Callable[[], Iterator[SurveyBatch]]


def class_means(survey: Survey, classes: int) -> Tensor:
    """(K, D) float32 on the CPU: the teacher's mean embedding of each class; 0 for a class without samples.

    Raises:
        EdgekdError: There are no embeddings or no labels: the objective did not declare that it needs them.
    """
    sums: Tensor | None = None
    counts = torch.zeros(classes, dtype=torch.float64)
    for batch in survey.batches():
        embedding, labels = batch.teacher.embedding, batch.labels
        if embedding is None or labels is None:
            raise EdgekdError("Class means need embeddings and labels, and the objective did not declare both.")
        if sums is None:
            sums = torch.zeros(classes, embedding.shape[1], dtype=torch.float64)
        sums.index_add_(0, labels.cpu(), embedding.cpu().double())
        counts += torch.bincount(labels.cpu(), minlength=classes)
    if sums is None:
        raise EdgekdError("Class means need at least one sample.")
    return (sums / counts.clamp_min(1)[:, None]).float()
