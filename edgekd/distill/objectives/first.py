"""FIRST: the teacher's few largest probabilities, calibrated, and the rest as one."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from edgekd.core.schema import Schema
from edgekd.distill.objectives.probability import divergences, log_probabilities
from edgekd.train.objective import LossWeights, Objective, Signal, Signals


class FIRSTConfig(Schema):
    """Arguments of `first`.

    Attributes:
        top: k: how many of the teacher's probabilities the student is shown.
        temperature: Of the teacher alone, at which its probabilities are calibrated on held-out images
            (`edgekd.distill.calibration.calibrating_temperature`); 1 takes them as they are.
    """

    top: int = Field(default=5, ge=1)
    temperature: float = Field(default=1.0, gt=0)


class FIRST(Objective[FIRSTConfig]):
    """`KL(q || p)` over k + 1 outcomes: the k likeliest classes of softmax(t / T), and any other; p = softmax(s).

    The student has T = 1: it takes over the calibrated probabilities and needs no temperature when deployed.

    Deviations: the authors renormalise the k probabilities to 1, which says nothing of the other classes; here they are
    one outcome more (an option in their code, which mixes probabilities with log-probabilities there). They recalibrate
    by smoothing or by a temperature; here it is the temperature.
    """

    name = "first"
    Config = FIRSTConfig
    needs: ClassVar = frozenset({Signal.LOGITS})
    t_squared = False
    default_weights = LossWeights(supervised=0.0, distill=1.0)
    formula = "KL(q || p) over the k likeliest classes of softmax(t/T) and the rest as one; p = softmax(s)"
    source = "Shum, Xu, Zhang et al. 2024, arXiv 2408.12168"

    def forward(self, student: Signals, teacher: Signals, labels: Tensor | None) -> Tensor:
        return top_divergence(student.logits, teacher.logits, self.config.top, self.config.temperature)


def top_divergence(student: Tensor, teacher: Tensor, top: int, temperature: float) -> Tensor:
    """Scalar `KL(q || p)` over the teacher's `top` classes and the rest, of (N, K) logits, mean over samples."""
    log_t = log_probabilities(teacher, temperature)
    order = log_t.argsort(dim=1, descending=True)
    outcomes = [_outcomes(log_p.gather(1, order), top) for log_p in (log_t, log_probabilities(student))]
    return divergences(*outcomes).mean()


def _outcomes(log_p: Tensor, top: int) -> Tensor:
    """(N, top + 1) log-probabilities of the first columns and of all others together; all columns if there are no
    more."""
    if top >= log_p.shape[1]:
        return log_p
    return torch.cat([log_p[:, :top], log_p[:, top:].logsumexp(1, keepdim=True)], dim=1)
