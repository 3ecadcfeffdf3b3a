"""CRD: the student's embedding of an image is nearer to the teacher's of that image than to those of other classes."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from edgekd.core.schema import Schema
from edgekd.distill.objectives.geometry import directions
from edgekd.errors import UserError
from edgekd.train.objective import LossWeights, Objective, Signal, Signals, SignalSpec, full_precision, present

_NO_NEIGHBOUR = -1e9


class CRDConfig(Schema):
    """Arguments of `crd`.

    Attributes:
        width: Of the space in which both embeddings meet.
        temperature: tau of the similarities.
        negatives: How many negatives a positive competes with; those of the batch stand for so many.
    """

    width: int = Field(default=128, ge=1)
    temperature: float = Field(default=0.07, gt=0)
    negatives: int = Field(default=16384, ge=1)


class CRD(Objective[CRDConfig]):
    """`-log(e_ii / (e_ii + M * mean_j e_ij))` with the student as anchor, and the same with the teacher as anchor.

    e_ij = exp(<u_i, v_j> / tau); u and v are the embeddings of student and teacher behind one linear layer each, at
    length 1; j runs over the samples of the batch of other classes.

    Deviations: the authors take M = 16384 negatives from a memory of all training images, of which a copy per network
    (2 * N * 128 floats) grows with the data and lags behind the weights; here the negatives are the batch's, and their
    mean is weighted by M, so that the loss does not depend on the batch's size. The bound is InfoNCE instead of their
    noise-contrastive estimate, which needs the memory's normalisation. Between equal widths both layers start equal.
    """

    name = "crd"
    Config = CRDConfig
    needs: ClassVar = frozenset({Signal.EMBEDDING, Signal.LABELS})
    adapts = True
    t_squared = False
    default_weights = LossWeights(supervised=1.0, distill=0.8)
    formula = "sum over both anchors of -log(e_ii / (e_ii + M * mean_j e_ij)), e_ij = exp(<u_i, v_j> / tau), y_j != y_i"
    source = "Tian, Krishnan and Isola 2020, arXiv 1910.10699"

    def bind(self, student: SignalSpec, teacher: SignalSpec) -> None:
        if student.width is None or teacher.width is None:
            raise UserError("The objective 'crd' needs the embeddings of both networks, and one of them has none.")
        self.of_student = nn.Linear(student.width, self.config.width)
        self.of_teacher = nn.Linear(teacher.width, self.config.width)
        if student.width == teacher.width:
            self.of_student.load_state_dict(self.of_teacher.state_dict())

    def forward(self, student: Signals, teacher: Signals, labels: Tensor | None) -> Tensor:
        u = self.of_student(full_precision(present(student.embedding, Signal.EMBEDDING)))
        v = self.of_teacher(full_precision(present(teacher.embedding, Signal.EMBEDDING)))
        return contrast(
            u,
            v,
            present(labels, Signal.LABELS),
            temperature=self.config.temperature,
            negatives=self.config.negatives,
        )


def contrast(student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float, negatives: int) -> Tensor:
    """Scalar: the loss of both anchors, mean over samples, of (N, D) embeddings of any length.

    A sample without another class in the batch has nothing to be told apart from, and a loss of 0.
    """
    with torch.autocast(device_type=student.device.type, enabled=False):
        u, v = directions(full_precision(student)), directions(full_precision(teacher))
        similarities = u @ v.T / temperature
        others = labels[:, None] != labels[None, :]
        return _anchored(similarities, others, negatives) + _anchored(similarities.T, others, negatives)


def _anchored(similarities: Tensor, others: Tensor, negatives: int) -> Tensor:
    """Scalar: mean over rows of `log(1 + M * mean_j exp(s_ij) / exp(s_ii))`."""
    count = others.sum(1).clamp_min(1).to(similarities.dtype)
    competing = similarities.masked_fill(~others, _NO_NEIGHBOUR).logsumexp(1) - count.log()
    return F.softplus(math.log(negatives) + competing - similarities.diagonal()).mean()
