"""OFA-KD: networks of unlike architectures are compared where they are alike, in the space of the logits."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from edgekd.core.schema import Schema
from edgekd.distill.objectives.branches import branches
from edgekd.distill.objectives.probability import log_probabilities, soft_cross_entropy
from edgekd.errors import UserError
from edgekd.train.objective import LossWeights, Objective, Signal, Signals, SignalSpec, present


class OFAConfig(Schema):
    """Arguments of `ofa`.

    Attributes:
        gamma: Above 1 the target class counts more where the teacher is sure of it; 1 is plain cross-entropy with the
            teacher's probabilities. The authors use 1 on CIFAR-100, and 1.5 for ResNet-18 from DeiT-T on ImageNet.
        branches: How many of the student's last stages get a branch.
        branch_weight: Of each branch's loss.
    """

    gamma: float = Field(default=1.0, ge=1)
    branches: int = Field(default=4, ge=0)
    branch_weight: float = Field(default=1.0, ge=0)


class OFA(Objective[OFAConfig]):
    """`l(s) + w * sum_m l(b_m(F_m))`, `l(z) = -sum_k ((p_k + [k = y])^gamma - [k = y]) * log softmax(z)_k`, p = p_t.

    b_m is a small classifier on the student's stage m, which training throws away: what a convolutional network and a
    transformer compute inside cannot be compared, what it says of the classes can. The teacher gives nothing but its
    logits, so it may be of any architecture.

    The labels are used where gamma is above 1, and needed only there.

    Deviations: a branch halves its map with separable convolutions to the size of the last stage, as theirs do, and
    transformers whose tokens form a grid are branched likewise: as many blocks as theirs get blocks of attention, one
    for each stage that follows and one at the last, are separable convolutions here.
    """

    name = "ofa"
    Config = OFAConfig
    needs: ClassVar = frozenset({Signal.LOGITS, Signal.STAGES})
    needs_of_teacher: ClassVar = frozenset({Signal.LOGITS})
    adapts = True
    t_squared = False
    default_weights = LossWeights(supervised=1.0, distill=1.0)
    formula = "l(s) + w * sum_m l(branch_m(F_m)), l(z) = -sum_k ((p_t + [k=y])^gamma - [k=y]) * log softmax(z)"
    source = "Hao, Guo, Han et al. 2023, arXiv 2310.19444"

    def __init__(self, config: OFAConfig) -> None:
        super().__init__(config)
        if config.gamma > 1:
            self.declare(needs=self.needs | {Signal.LABELS})

    def bind(self, student: SignalSpec, teacher: SignalSpec) -> None:
        if student.stages is None:
            raise UserError("The objective 'ofa' needs the student's stages, and it has none.")
        self.stages = range(len(student.stages))[max(0, len(student.stages) - self.config.branches) :]
        self.branches = branches(student.stages, self.stages, student.classes)

    def forward(self, student: Signals, teacher: Signals, labels: Tensor | None) -> Tensor:
        targets = enhanced_targets(teacher.logits, labels, self.config.gamma)
        loss = soft_cross_entropy(student.logits, targets)
        stages = present(student.stages, Signal.STAGES)
        for number, branch in zip(self.stages, self.branches, strict=True):
            loss = loss + self.config.branch_weight * soft_cross_entropy(branch(stages[number]), targets)
        return loss


def enhanced_targets(teacher: Tensor, labels: Tensor | None, gamma: float) -> Tensor:
    """(N, K) weights `(p_k + [k = y])^gamma - [k = y]` from (N, K) logits; the teacher's probabilities at gamma 1.

    Args:
        teacher: (N, K), unnormalised.
        labels: (N,) int64; not looked at where gamma is 1.
        gamma: At least 1.
    """
    p = log_probabilities(teacher).exp()
    if gamma == 1:
        return p  # 1 + p - 1 would round
    hot = F.one_hot(present(labels, Signal.LABELS), p.shape[1]).to(p.dtype)
    return torch.pow(p + hot, gamma) - hot
