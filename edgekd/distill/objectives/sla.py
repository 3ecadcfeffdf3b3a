"""SLA and self-distillation: a task of four turned views, whose joint answer the network learns to give from one."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from edgekd.core.schema import Schema
from edgekd.distill.objectives.kd import softened_kl
from edgekd.errors import UserError
from edgekd.train.objective import LossWeights, Objective, Signal, Signals, SignalSpec, full_precision, present

TURNS = 4
"""Quarter turns: 0, 90, 180 and 270 degrees."""


class SLAConfig(Schema):
    """Arguments of `sla`.

    Attributes:
        temperature: T of the self-distillation.
        joint_weight: Of the joint labels; the authors take 4, the number of views, on large data.
        self_weight: Of the self-distillation.
    """

    temperature: float = Field(default=1.0, gt=0)
    joint_weight: float = Field(default=1.0, ge=0)
    self_weight: float = Field(default=1.0, ge=0)


class SLA(Objective[SLAConfig]):
    """`w_j * mean_m CE(J(f_m), 4 y + m) + w_s * T^2 * KL(p(a) || p(s))`, f_m the embedding of the image turned m times.

    J gives a logit to each class in each turn; a is the mean over m of J(f_m)'s logits of turn m, without gradient: an
    ensemble of four views in one network, which the classifier learns to match on the upright image. No teacher is
    needed, J is training only, and the deployed network is the same; a training step costs four passes. Classes that a
    turn changes into each other (6 and 9) are told apart by the joint labels alone.
    """

    name = "sla"
    Config = SLAConfig
    needs: ClassVar = frozenset({Signal.LOGITS, Signal.EMBEDDING, Signal.LABELS})
    needs_teacher = False
    adapts = True
    t_squared = True
    default_weights = LossWeights(supervised=1.0, distill=1.0)
    formula = "w_j * mean_m CE(J(f_m), 4 y + m) + w_s * T^2 * KL(p(mean_m J(f_m)[turn m]) || p(s)), m = 0..3 turns"
    source = "Lee, Hwang and Shin 2020, arXiv 1910.05872"

    def bind(self, student: SignalSpec, teacher: SignalSpec | None) -> None:
        if student.width is None:
            raise UserError("The objective 'sla' needs the student's embedding, and it has none.")
        self.joint = nn.Linear(student.width, TURNS * student.classes)

    def more_images(self, images: Tensor) -> tuple[Tensor, ...]:
        height, width = images.shape[2:]
        if height != width:
            raise UserError(
                f"The objective 'sla' turns images by 90 degrees, but they are {height}x{width}.",
                hint="give square images, or choose another objective: edgekd objectives",
            )
        return tuple(torch.rot90(images, turns, (2, 3)) for turns in range(1, TURNS))

    def forward(self, student: Signals, teacher: Signals | None, labels: Tensor | None) -> Tensor:
        y, views = present(labels, Signal.LABELS), (student, *student.more)
        joint = [self.joint(full_precision(present(view.embedding, Signal.EMBEDDING))) for view in views]
        loss = joint_cross_entropy(joint, y)
        distilled = softened_kl(student.logits, aggregated(joint), self.config.temperature)
        return self.config.joint_weight * loss + self.config.self_weight * distilled


def joint_cross_entropy(joint: list[Tensor], labels: Tensor) -> Tensor:
    """Scalar: mean over views m of the cross-entropy of (N, K * M) logits with the label y * M + m."""
    views = len(joint)
    losses = [F.cross_entropy(logits, labels * views + view) for view, logits in enumerate(joint)]
    return torch.stack(losses).mean()


def aggregated(joint: list[Tensor]) -> Tensor:
    """(N, K) mean over views m of the logits for turn m, which are those at m, m + M, ...; without gradient."""
    views = len(joint)
    return torch.stack([logits.detach()[:, view::views] for view, logits in enumerate(joint)]).mean(0)
