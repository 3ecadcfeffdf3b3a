"""SinKD: the cost of turning the student's answers on a batch into the teacher's, by regularised optimal transport."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from edgekd.core.schema import Schema
from edgekd.distill.objectives.kd import softened_kl
from edgekd.distill.objectives.probability import log_probabilities
from edgekd.train.objective import LossWeights, Objective, Signal, Signals

AUTHORS_BATCH = 16
"""Their Sinkhorn term sums over it."""


class SinKDConfig(Schema):
    """Arguments of `sinkd`.

    Attributes:
        temperature: T of the softened probabilities.
        kd_weight: Of the softened probabilities. Transport alone does not say which image is which: it is the same
            after a permutation of the batch.
        sinkhorn_weight: Of the transport cost per sample.
        sinkhorn_temperature: T of the probabilities that are transported.
        epsilon: Weight of the entropy of the plan: small values let it match one to one.
        iterations: Of Sinkhorn's normalisation of rows and columns.
    """

    temperature: float = Field(default=3.5, gt=0)
    kd_weight: float = Field(default=0.9, ge=0)
    sinkhorn_weight: float = Field(default=0.8 * 0.001 * AUTHORS_BATCH, ge=0)
    sinkhorn_temperature: float = Field(default=2.0, gt=0)
    epsilon: float = Field(default=0.1, gt=0)
    iterations: int = Field(default=20, ge=1)


class SinKD(Objective[SinKDConfig]):
    """`w_kd * kd + w_sink * sum_ij P_ij W_ij / N`, W_ij the L1 distance of student i's and teacher j's probabilities.

    P is the kernel exp(-W / epsilon) with its rows and columns scaled to sum to 1.

    Deviations: computed in the log domain, for exp(-2 / epsilon) leaves half precision; divided by N, for the mass of P
    is N, with the weight multiplied by the authors' batch of 16. They publish values for language models alone.
    """

    name = "sinkd"
    Config = SinKDConfig
    needs: ClassVar = frozenset({Signal.LOGITS})
    t_squared = True
    default_weights = LossWeights(supervised=0.1, distill=1.0)
    formula = "w_kd * T^2 * KL(p_t || p_s) + w_sink * <P, W> / N, W_ij = |p_s[i] - p_t[j]|_1, P = Sinkhorn(exp(-W/eps))"
    source = "Cui, Qin, Gao et al. 2024, arXiv 2402.17110"

    def forward(self, student: Signals, teacher: Signals, labels: Tensor | None) -> Tensor:
        given = self.config
        transport = transport_cost(
            student.logits,
            teacher.logits,
            temperature=given.sinkhorn_temperature,
            epsilon=given.epsilon,
            iterations=given.iterations,
        )
        kl = softened_kl(student.logits, teacher.logits, given.temperature)
        return given.kd_weight * kl + given.sinkhorn_weight * transport


def transport_cost(student: Tensor, teacher: Tensor, *, temperature: float, epsilon: float, iterations: int) -> Tensor:
    """Scalar `sum_ij P_ij W_ij / N` of (N, K) logits; gradients flow through the iterations."""
    p_s, p_t = log_probabilities(student, temperature).exp(), log_probabilities(teacher, temperature).exp()
    costs = torch.cdist(p_s, p_t, p=1)
    return (log_plan(costs, epsilon, iterations).exp() * costs).sum() / len(costs)


def log_plan(costs: Tensor, epsilon: float, iterations: int) -> Tensor:
    """(N, N) logarithm of exp(-costs / epsilon) after Sinkhorn's iterations; its columns sum to 1 exactly, its rows
    nearly."""
    plan = -costs / epsilon
    for _ in range(iterations):
        plan = plan.log_softmax(1)
        plan = plan.log_softmax(0)
    return plan
