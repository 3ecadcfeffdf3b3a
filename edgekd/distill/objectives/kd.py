"""Knowledge distillation by softened probabilities."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from edgekd.core.schema import Schema
from edgekd.train.objective import LossWeights, Objective, Signal, Signals, full_precision


class KDConfig(Schema):
    """Arguments of `kd`.

    Attributes:
        temperature: T; 4 for small images with 10 to 100 classes, 1 for ImageNet.
    """

    temperature: float = Field(default=4.0, gt=0)


class KD(Objective[KDConfig]):
    """`T^2 * KL(softmax(t / T) || softmax(s / T))`, summed over classes, mean over samples.

    Deviation from common code: `KLDivLoss` with its default reduction also divides by K, which silently weakens the
    term by the number of classes; this one does not.
    """

    name = "kd"
    Config = KDConfig
    needs: ClassVar = frozenset({Signal.LOGITS})
    t_squared = True
    default_weights = LossWeights(supervised=0.1, distill=0.9)
    formula = "T^2 * KL(softmax(t/T) || softmax(s/T))"
    source = "Hinton, Vinyals and Dean 2015, arXiv 1503.02531"

    def forward(self, student: Signals, teacher: Signals, labels: Tensor | None) -> Tensor:
        return softened_kl(student.logits, teacher.logits, self.config.temperature)


def softened_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Scalar `T^2 * KL(p_t || p_s)` of (N, K) logits: sum over classes, mean over samples."""
    log_s = F.log_softmax(full_precision(student) / temperature, dim=1)
    log_t = F.log_softmax(full_precision(teacher) / temperature, dim=1)
    return temperature**2 * F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)
