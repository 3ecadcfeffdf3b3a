"""Deep mutual learning: two networks that learn from the labels and from each other, neither above the other."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from edgekd.core.schema import Schema
from edgekd.distill.objectives.kd import softened_kl
from edgekd.train.objective import LossWeights, Objective, Signal, Signals


class DMLConfig(Schema):
    """Arguments of `dml`.

    Attributes:
        temperature: T; the authors have none, which is 1.
    """

    temperature: float = Field(default=1.0, gt=0)


class DML(Objective[DMLConfig]):
    """`T^2 * KL(p_t || p_s)` for the student and `T^2 * KL(p_s || p_t)` for its peer, each beside its cross-entropy.

    Deviations: both losses are of the same answers, and both networks move at once; the authors update one, ask it
    again, and update the other. The second network is the teacher, which is thrown away; a trained one has a fifth of
    the student's learning rate (`TrainConfig.teacher_lr_share`), where the authors begin with two untrained ones.
    """

    name = "dml"
    Config = DMLConfig
    needs: ClassVar = frozenset({Signal.LOGITS})
    trains_teacher = True
    t_squared = True
    default_weights = LossWeights(supervised=1.0, distill=1.0)
    formula = "student: T^2 * KL(p_t || p_s); teacher: CE(t, y) + T^2 * KL(p_s || p_t)"
    source = "Zhang, Xiang, Hospedales and Lu 2018, arXiv 1706.00384"

    def forward(self, student: Signals, teacher: Signals, labels: Tensor | None) -> Tensor:
        return softened_kl(student.logits, teacher.logits, self.config.temperature)

    def teacher_loss(self, student: Signals, teacher: Signals, labels: Tensor | None) -> Tensor:
        return softened_kl(teacher.logits, student.logits, self.config.temperature)
