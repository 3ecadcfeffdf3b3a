"""Multi-exit self-distillation: classifiers on a network's own stages learn from its last one, and train its body."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from edgekd.core.schema import Schema
from edgekd.distill.objectives.branches import branches
from edgekd.distill.objectives.kd import softened_kl
from edgekd.errors import UserError
from edgekd.train.objective import LossWeights, Objective, Signal, Signals, SignalSpec, present


class ExitsConfig(Schema):
    """Arguments of `exits`.

    Attributes:
        temperature: T between the last exit and the others.
        label_weight: Of each exit's cross-entropy with the labels.
        self_weight: Of each exit's divergence from the network's logits.
    """

    temperature: float = Field(default=3.0, gt=0)
    label_weight: float = Field(default=0.7, ge=0)
    self_weight: float = Field(default=0.3, ge=0)


class Exits(Objective[ExitsConfig]):
    """`mean_e (w_y * CE(z_e, y) + w_s * T^2 * KL(p(s) || p(z_e)))`, z_e = exit e on stage e, all stages but the last.

    The network's own logits s are the teacher and get no gradient from it; no teacher is needed. The exits are training
    only: what the body gains stays, and the deployed network is the same.

    Deviations: the distance between the exits' features and the last ones is left out, which needs as many adapters as
    there are exits; the mean over exits, not their sum, so that deep networks are not pulled harder.
    """

    name = "exits"
    Config = ExitsConfig
    needs: ClassVar = frozenset({Signal.STAGES, Signal.LABELS})
    needs_teacher = False
    adapts = True
    t_squared = True
    default_weights = LossWeights(supervised=1.0, distill=1.0)
    formula = "mean_e (w_y * CE(z_e, y) + w_s * T^2 * KL(p(s) || p(z_e))), z_e = exit_e(F_e)"
    source = "Zhang, Song, Gao et al. 2019, arXiv 1905.08094; multi-exit: Gurioli et al. 2025, arXiv 2503.03008"

    def bind(self, student: SignalSpec, teacher: SignalSpec | None) -> None:
        if student.stages is None or len(student.stages) < 2:
            raise UserError(
                "The objective 'exits' needs a student of at least two stages: an exit is taken before the last one."
            )
        self.exits = branches(student.stages, range(len(student.stages) - 1), student.classes)

    def forward(self, student: Signals, teacher: Signals | None, labels: Tensor | None) -> Tensor:
        y, stages = present(labels, Signal.LABELS), present(student.stages, Signal.STAGES)
        last = student.logits.detach()
        loss = student.logits.new_zeros(()).float()
        for leave, stage in zip(self.exits, stages[:-1], strict=True):
            z = leave(stage)
            loss = loss + self.config.label_weight * F.cross_entropy(z, y)
            loss = loss + self.config.self_weight * softened_kl(z, last, self.config.temperature)
        return loss / len(self.exits)
