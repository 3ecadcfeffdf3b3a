"""Decoupled knowledge distillation: the target class and the others are weighted apart."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from edgekd.core.schema import Schema
from edgekd.train.objective import LossWeights, Objective, Signal, Signals, full_precision, present


class DKDConfig(Schema):
    """Arguments of `dkd`.

    Attributes:
        temperature: T.
        alpha: Weight of the target-class term.
        beta: Weight of the non-target term. Tuned per pair by the authors: 8 or 6 for strong teachers of another shape,
            2 for CIFAR ResNets, 0.5 for ImageNet (with T = 1).
    """

    temperature: float = Field(default=4.0, gt=0)
    alpha: float = Field(default=1.0, ge=0)
    beta: float = Field(default=8.0, ge=0)


class DKD(Objective[DKDConfig]):
    """`T^2 * (alpha * KL(b_t || b_s) + beta * KL(q_t || q_s))`, mean over samples.

    b = [p_y, 1 - p_y]; q = softmax over the classes other than y. With beta = 1 - p_t(y) it is `kd`.

    Deviation: the authors mask the target with the constant -1000, which overflows in half precision; here the target's
    column is left out, and log(1 - p_y) is a difference of two log-sum-exps.
    """

    name = "dkd"
    Config = DKDConfig
    needs: ClassVar = frozenset({Signal.LOGITS, Signal.LABELS})
    t_squared = True
    default_weights = LossWeights(supervised=1.0, distill=1.0, warmup=20 / 240)
    formula = "T^2 * (alpha * KL([p_y, 1-p_y]_t || ..._s) + beta * KL(softmax(t_others/T) || softmax(s_others/T)))"
    source = "Zhao, Cui, Song, Qiu and Liang 2022, arXiv 2203.08679"

    def forward(self, student: Signals, teacher: Signals, labels: Tensor | None) -> Tensor:
        target, others = decoupled_terms(
            student.logits, teacher.logits, present(labels, Signal.LABELS), self.config.temperature
        )
        return self.config.alpha * target + self.config.beta * others


def decoupled_terms(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Scalars `T^2 * KL(b_t || b_s)` and `T^2 * KL(q_t || q_s)` of (N, K) logits, mean over samples."""
    binary_s, log_q_s = _decoupled(full_precision(student) / temperature, labels)
    binary_t, log_q_t = _decoupled(full_precision(teacher) / temperature, labels)
    scale = temperature**2
    target = F.kl_div(binary_s, binary_t, reduction="batchmean", log_target=True)
    others = F.kl_div(log_q_s, log_q_t, reduction="batchmean", log_target=True)
    return scale * target, scale * others


def _decoupled(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """log [p_y, 1 - p_y], (N, 2), and the log-probabilities among the other classes, (N, K - 1)."""
    columns = torch.arange(logits.shape[1] - 1, device=logits.device)
    of_others = columns + (columns >= labels[:, None])
    others = logits.gather(1, of_others)
    both = torch.stack([logits.gather(1, labels[:, None])[:, 0], others.logsumexp(1)], dim=1)
    return F.log_softmax(both, dim=1), F.log_softmax(others, dim=1)
