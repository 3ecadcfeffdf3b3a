"""TAID: a target that moves from the student itself to the teacher, as fast as the student can follow."""

from __future__ import annotations

import math
from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from edgekd.core.schema import Schema
from edgekd.distill.objectives.probability import divergences, entropies, log_probabilities
from edgekd.train.gather import gathered
from edgekd.train.objective import LossWeights, Objective, Signal, Signals, full_precision

_TINY = 1e-15


class TAIDConfig(Schema):
    """Arguments of `taid`.

    Attributes:
        start: tau at the first step.
        end: tau at the last step; 1 is the teacher.
        rate: alpha: most by which a step may run ahead of the straight line.
        momentum: beta of the mean relative change of the loss.
    """

    start: float = Field(default=0.4, ge=0, le=1)
    end: float = Field(default=1.0, ge=0, le=1)
    rate: float = Field(default=5e-4, ge=0)
    momentum: float = Field(default=0.99, ge=0, lt=1)

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.start > self.end:
            raise ValueError(f"start ({self.start}) must not be above end ({self.end})")
        return self


class TAID(Objective[TAIDConfig]):
    """`KL(q || p_s)`, q = softmax((1 - tau) * s + tau * t) without gradient: it bridges a gap of capacity.

    tau = max(start + (end - start) * share of the steps done, tau + alpha * sigmoid(m) * (1 - tau)), at most `end`; m
    the moving mean of the relative fall of the cross-entropy: a student that learns well gets a harder target sooner.

    Deviations: the value is the divergence, not the cross-entropy, whose gradient is the same, for q has none; thus it
    is 0 where the student equals the teacher. tau follows the cross-entropy, as the authors' does. tau, m and the last
    loss are part of the state, and change in training steps alone; with several processes they follow the mean loss.
    """

    name = "taid"
    Config = TAIDConfig
    needs: ClassVar = frozenset({Signal.LOGITS})
    t_squared = False
    default_weights = LossWeights(supervised=1.0, distill=1.0)
    formula = "KL(q || p_s), q = softmax((1 - tau) * s + tau * t), tau from 0.4 to 1, faster while the loss falls"
    source = "Shing, Misaki, Bao, Yokoi and Akiba 2025, arXiv 2501.16937"

    tau: Tensor
    mean_change: Tensor
    last_loss: Tensor

    def __init__(self, config: TAIDConfig) -> None:
        super().__init__(config)
        self.register_buffer("tau", torch.tensor(config.start))
        self.register_buffer("mean_change", torch.tensor(0.0))
        self.register_buffer("last_loss", torch.tensor(math.inf))

    def forward(self, student: Signals, teacher: Signals, labels: Tensor | None) -> Tensor:
        log_q = interpolated(student.logits, teacher.logits, self.tau)
        loss = divergences(log_q, log_probabilities(student.logits)).mean()
        if self.training:
            self._follow(loss.detach() + entropies(log_q).mean())
        return loss

    def _follow(self, cross_entropy: Tensor) -> None:
        """Moves tau, from the second step on; after this step's target has been used."""
        loss, given = gathered(cross_entropy[None]).mean(), self.config
        # Chosen on the device: asking the number in Python would wait for a GPU in every step.
        begun = torch.isfinite(self.last_loss)
        change = (self.last_loss - loss) / (self.last_loss + _TINY)
        mean = given.momentum * self.mean_change + (1 - given.momentum) * change
        line = given.start + (given.end - given.start) * self.progress.share
        ahead = self.tau + given.rate * torch.sigmoid(mean) * (1 - self.tau)
        self.mean_change.copy_(torch.where(begun, mean, self.mean_change))
        self.tau.copy_(torch.where(begun, ahead.clamp_min(line).clamp_max(given.end), self.tau))
        self.last_loss.copy_(loss)


def interpolated(student: Tensor, teacher: Tensor, tau: Tensor | float) -> Tensor:
    """(N, K) log-probabilities of the mixture of (N, K) logits, without gradient."""
    return log_probabilities((1 - tau) * full_precision(student).detach() + tau * full_precision(teacher))
