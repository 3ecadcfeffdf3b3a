"""BD-KD as its authors mean it: the teacher learns along with the student, each by its own loss."""

from __future__ import annotations

from torch import Tensor

from edgekd.distill.objectives.bdkd import BDKD
from edgekd.distill.objectives.kd import softened_kl
from edgekd.train.objective import Signals


class BDKDOnline(BDKD):
    """`bdkd` for the student; the teacher learns from `CE(t, y) + T^2 * KL(p_s || p_t)`, and follows its student.

    The reverse divergence keeps the teacher within what the student can reach: where it runs ahead, it is drawn back.
    That costs a backward pass of the teacher in every step, and no answer of it can be stored.

    Deviations: those of `bdkd`. Both losses are of the same answers, and both networks move at once. As a rule the
    teacher here has learned already, so it has a fifth of the student's learning rate (`TrainConfig.teacher_lr_share`);
    where both begin untrained, 1 is right.
    """

    name = "bdkd-online"
    trains_teacher = True
    formula = f"student: {BDKD.formula}; teacher: CE(t, y) + T^2 * KL(p_s || p_t)"

    def teacher_loss(self, student: Signals, teacher: Signals, labels: Tensor | None) -> Tensor:
        return softened_kl(teacher.logits, student.logits, self.config.temperature)
