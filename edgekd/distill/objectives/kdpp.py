"""KD++: softened probabilities, and embeddings pushed towards the teacher's class means and to a large norm."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from edgekd.core.schema import Schema
from edgekd.distill.objectives.kd import softened_kl
from edgekd.errors import UserError
from edgekd.train.objective import (
    LossWeights,
    Objective,
    Signal,
    Signals,
    SignalSpec,
    Survey,
    full_precision,
    present,
)
from edgekd.train.survey import class_means

_ADAPTER_DROPOUT = 0.5
_SMALLEST_NORM = 1e-8


class KDPlusPlusConfig(Schema):
    """Arguments of `kdpp`.

    Attributes:
        temperature: T of the softened probabilities.
        kd_weight: Of the softened probabilities: 1 for CIFAR ResNets, 2.5 to 4 for other shapes and for ImageNet.
        nd_weight: Of the norm-and-direction term: 2 for CIFAR ResNets, 0.5 to 1.5 for other shapes, 1 for ImageNet.
    """

    temperature: float = Field(default=4.0, gt=0)
    kd_weight: float = Field(default=1.0, ge=0)
    nd_weight: float = Field(default=2.0, ge=0)


class KDPlusPlus(Objective[KDPlusPlusConfig]):
    """`kd_weight * kd + nd_weight * mean_i(1 - <f_i, e_y> / max(|f_i|, |g_i|))`.

    f is the student's embedding (through BatchNorm, dropout and a linear adapter where the widths differ), g the
    teacher's, and e_y the direction of the teacher's mean embedding of class y over the training set without
    augmentation.

    Deviations: the class means keep full precision (the authors round them to four decimals); the warm-up fades in both
    terms (theirs only the softened probabilities).
    """

    name = "kdpp"
    Config = KDPlusPlusConfig
    needs: ClassVar = frozenset({Signal.LOGITS, Signal.EMBEDDING, Signal.LABELS})
    t_squared = True
    default_weights = LossWeights(supervised=1.0, distill=1.0, warmup=20 / 240)
    formula = "kd_weight * T^2 * KL(p_t || p_s) + nd_weight * mean_i(1 - <f_i, e_y> / max(|f_i|, |g_i|))"
    source = "Wang, Cheng, Duan, Wang, Feng and Kong 2023, arXiv 2305.17007"

    class_directions: Tensor

    def bind(self, student: SignalSpec, teacher: SignalSpec) -> None:
        if student.width is None or teacher.width is None:
            raise UserError("The objective 'kdpp' needs the embeddings of both networks, and one of them has none.")
        self.adapter: nn.Module = nn.Identity()
        if student.width != teacher.width:
            self.declare(adapts=True)
            self.adapter = nn.Sequential(
                nn.BatchNorm1d(student.width), nn.Dropout(_ADAPTER_DROPOUT), nn.Linear(student.width, teacher.width)
            )
        self.register_buffer("class_directions", torch.zeros(teacher.classes, teacher.width))

    def prepare(self, survey: Survey) -> None:
        self.class_directions.copy_(F.normalize(class_means(survey, len(self.class_directions)), dim=1))

    def forward(self, student: Signals, teacher: Signals, labels: Tensor | None) -> Tensor:
        direction = norm_and_direction(
            self.adapter(present(student.embedding, Signal.EMBEDDING)),
            present(teacher.embedding, Signal.EMBEDDING),
            self.class_directions[present(labels, Signal.LABELS)],
        )
        kl = softened_kl(student.logits, teacher.logits, self.config.temperature)
        return self.config.kd_weight * kl + self.config.nd_weight * direction


def norm_and_direction(student: Tensor, teacher: Tensor, directions: Tensor) -> Tensor:
    """Scalar `mean_i(1 - <f_i, e_i> / max(|f_i|, |g_i|))`.

    Args:
        student: f, (N, D).
        teacher: g, (N, D).
        directions: e, (N, D), unit vectors.
    """
    f, g = full_precision(student), full_precision(teacher)
    norms = torch.maximum(torch.linalg.vector_norm(f, dim=1), torch.linalg.vector_norm(g, dim=1))
    return (1 - (f * directions).sum(1) / norms.clamp_min(_SMALLEST_NORM)).mean()
