"""DHKD: the teacher's logits are matched by a second head, so that their gradient does not meet the classifier's."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from edgekd.core.schema import Schema
from edgekd.errors import UserError
from edgekd.train.objective import LossWeights, Objective, Signal, Signals, SignalSpec, full_precision, present

_DROPOUT = 0.1


class DHKDConfig(Schema):
    """Arguments of `dhkd`.

    Attributes:
        temperature: T: where the loss turns from quadratic to linear.
        head: `mlp` for small images, `linear` for ImageNet.
        hidden: Width of the MLP.
    """

    temperature: float = Field(default=2.0, gt=0)
    head: Literal["mlp", "linear"] = "mlp"
    hidden: int = Field(default=200, ge=1)


class DHKD(Objective[DHKDConfig]):
    """`T^2 * mean_i sum_k log cosh((z_k - t_k) / 2T)`, z = h(f): a second head on the student's embedding.

    The authors write it as sum_k KL(Bernoulli(1/2) || Bernoulli(sigmoid((z_k - t_k) / T))); the log-cosh is the same
    number without the cancellation: a regression of logits, quadratic nearby and linear far away. The classifier learns
    from the labels alone, the body from both; the second head is training only. The sum over classes is the authors',
    with its weight of 1 at 100 classes (0.1 at 1000).

    Deviation: their optional projection of the teacher's gradient onto the half-space that agrees with the labels' is
    left out; it needs two backward passes over all weights.
    """

    name = "dhkd"
    Config = DHKDConfig
    needs: ClassVar = frozenset({Signal.EMBEDDING})
    needs_of_teacher: ClassVar = frozenset({Signal.LOGITS})
    adapts = True
    t_squared = True
    default_weights = LossWeights(supervised=1.0, distill=1.0)
    formula = "T^2 * mean_i sum_k log cosh((h(f_s)_k - t_k) / 2T)"
    source = "Yang, Zong, Huang, Feng and An 2024, arXiv 2411.08937"

    def bind(self, student: SignalSpec, teacher: SignalSpec) -> None:
        if student.width is None:
            raise UserError("The objective 'dhkd' needs the student's embedding, and it has none.")
        self.head = _head(student.width, teacher.classes, self.config)

    def forward(self, student: Signals, teacher: Signals, labels: Tensor | None) -> Tensor:
        second = self.head(full_precision(present(student.embedding, Signal.EMBEDDING)))
        return log_cosh_distance(second, teacher.logits, self.config.temperature)


def log_cosh_distance(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Scalar `T^2 * sum_k log cosh((s_k - t_k) / 2T)` of (N, K) logits, mean over samples."""
    half = ((full_precision(student) - full_precision(teacher)) / (2 * temperature)).abs()
    return temperature**2 * (half + F.softplus(-2 * half) - math.log(2)).sum(1).mean()


def _head(width: int, classes: int, config: DHKDConfig) -> nn.Module:
    if config.head == "linear":
        return nn.Linear(width, classes)
    return nn.Sequential(
        nn.Linear(width, config.hidden),
        nn.Dropout(_DROPOUT),
        nn.BatchNorm1d(config.hidden),
        nn.ReLU(),
        nn.Linear(config.hidden, classes),
    )
