"""SSLD and MEAL V2: the teacher's probabilities are the only labels."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor

from edgekd.core.schema import Schema
from edgekd.distill.objectives.probability import divergences, log_probabilities, soft_cross_entropy
from edgekd.train.objective import LossWeights, Objective, Signal, Signals


class SoftConfig(Schema):
    """Arguments of `soft`.

    Attributes:
        divergence: `js`, the Jensen-Shannon divergence of SSLD, is bounded by ln 2, so that an image on which the
            teacher errs pulls little; `ce`, the cross-entropy of MEAL V2, has the gradient of the KL divergence.
    """

    divergence: Literal["js", "ce"] = "js"


class Soft(Objective[SoftConfig]):
    """`JS(p_t, p_s) = KL(p_t || m) / 2 + KL(p_s || m) / 2`, m = (p_t + p_s) / 2, or `-sum p_t log p_s`; T = 1.

    The labels are not used: images without labels are as good as others, and the authors add millions of them. SSLD
    trains from the teacher's choice of images for three times the usual epochs; MEAL V2 starts at a trained student,
    with a small learning rate and no weight decay. Several teachers count by the mean of their probabilities.

    Deviations: MEAL V2's discriminator is left out. In the authors' code one optimizer minimises its loss for the
    discriminator and for the student, so that it is no adversary.
    """

    name = "soft"
    Config = SoftConfig
    needs: ClassVar = frozenset({Signal.LOGITS})
    t_squared = False
    default_weights = LossWeights(supervised=0.0, distill=1.0)
    formula = "JS(p_t, p_s), or CE(p_t, p_s); no labels"
    source = "SSLD: Cui et al. 2021, arXiv 2103.05959; MEAL V2: Shen and Savvides 2020, arXiv 2009.08453"

    def forward(self, student: Signals, teacher: Signals, labels: Tensor | None) -> Tensor:
        if self.config.divergence == "ce":
            return soft_cross_entropy(student.logits, log_probabilities(teacher.logits).exp())
        return jensen_shannon(student.logits, teacher.logits)


def jensen_shannon(student: Tensor, teacher: Tensor) -> Tensor:
    """Scalar in [0, ln 2]: the Jensen-Shannon divergence of softmax of (N, K) logits, mean over samples."""
    log_s, log_t = log_probabilities(student), log_probabilities(teacher)
    log_m = torch.logaddexp(log_s, log_t) - math.log(2)
    return 0.5 * (divergences(log_t, log_m) + divergences(log_s, log_m)).mean()
