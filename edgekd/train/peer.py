"""A teacher that is trained along with its student: a copy with gradients, which lives as long as the training.

It answers inside of the lesson, so that one wrapper (autocast, DDP) and one checkpoint cover both networks. How a
teacher answers that stays as it is, live or stored, is the business of `edgekd.train.teacher`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.core.text import percent, points
from edgekd.errors import UserError
from edgekd.tasks.classification import supervised_loss, wilson_interval
from edgekd.train.config import TrainConfig
from edgekd.train.objective import Objective, full_precision, present
from edgekd.train.signal import Signal, Signals, signals_from_flat
from edgekd.train.signals import SignalSource


class Peer(nn.Module):
    """The teacher in a lesson. It learns in the steps in which an objective counts that trains it, and rests in others.

    Its loss mirrors the student's: the same weights, the same labels, and of the student only answers without gradient.

    Args:
        source: The copy; what it says beside its logits is for objectives that look inside.
        objectives: Those of the lesson, in its order.
        label_smoothing: Of the cross-entropy.
        joint: Whether several processes train it: where it does not learn, it then gets gradients of zero.
    """

    def __init__(
        self, source: SignalSource, objectives: Sequence[Objective[Any]], label_smoothing: float, *, joint: bool = False
    ) -> None:
        super().__init__()
        self.source = source
        self._objectives = tuple(objectives)  # no modules of this one: the lesson has them
        self._label_smoothing = label_smoothing
        self._joint = joint

    def learns(self, weights: Sequence[float]) -> bool:
        """Whether an objective trains it in a step of these weights."""
        return any(weight and o.trains_teacher for o, weight in zip(self._objectives, weights, strict=True))

    def forward(self, images: Tensor, weights: Sequence[float]) -> Signals:
        """What it says of a batch; with gradients where it learns. BatchNorm follows the batches only there too."""
        learns = self.learns(weights)
        if self.source.training != (learns and self.training):
            self.source.train(learns and self.training)
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            said: Signals = self.source(images)
        return said

    def loss(
        self,
        student: Signals,
        said: Signals | None,
        labels: Tensor | None,
        supervised_weight: float,
        weights: Sequence[float],
    ) -> Tensor:
        """A scalar: the cross-entropy and what objectives declare, weighted as for the student; 0 where it rests.

        Args:
            student: Without gradients.
            said: What `forward` returned; None where it rests and nobody asked it.
            labels: (N,) int64, or (N, K) shares of mixed images.
            supervised_weight: Of the cross-entropy.
            weights: Of each objective in this step.
        """
        if not self.learns(weights):
            zero = torch.zeros((), device=student.logits.device)
            return zero + untouched(self) if self._joint else zero
        said, labels = present(said, "the teacher's answers"), present(labels, Signal.LABELS)
        loss = supervised_weight * supervised_loss(said.logits, labels, self._label_smoothing)
        hard = labels if labels.ndim == 1 else None
        for objective, weight in zip(self._objectives, weights, strict=True):
            if weight and objective.trains_teacher:
                loss = loss + weight * objective.teacher_loss(student, said, hard)
        return loss


def untouched(module: nn.Module) -> Tensor | float:
    """0, with a gradient of zero for each trainable parameter: DDP waits for those too that a step leaves out."""
    return sum((0.0 * parameter.sum() for parameter in module.parameters() if parameter.requires_grad), start=0.0)


def detached(signals: Signals) -> Signals:
    """The same without gradients and in at least float32, as the answers of a teacher are that is not trained."""
    return signals_from_flat({name: full_precision(x).detach() for name, x in signals.flat().items()})


def check_one_teacher_to_train(
    objectives: Sequence[Objective[Any]], config: TrainConfig, *, teachers: int, supervised: float
) -> None:
    """Makes sure that where an objective trains the teacher, all else takes one that moves.

    Args:
        objectives: Of the training.
        config: Its options.
        teachers: How many there are.
        supervised: Weight of the cross-entropy.

    Raises:
        UserError: There are several teachers, their answers would be kept, an objective keeps what the teacher said
            before the training, or no label holds the teacher.
    """
    trains = next((objective.name for objective in objectives if objective.trains_teacher), None)
    if trains is None:
        return
    said = f"The objective {trains!r} trains the teacher along"
    if teachers > 1:
        raise UserError(
            f"{said}, and there are {teachers} teachers: a student and one teacher learn together.",
            hint="give one teacher, or choose an objective that takes several as they are: bdkd or kd",
        )
    if config.teacher_views:
        raise UserError(
            f"{said}, so its answers change with every step, but teacher_views is {config.teacher_views}: it keeps "
            "answers for later epochs.",
            hint="set teacher_views=0",
        )
    for objective in objectives:
        if type(objective).prepare is not Objective.prepare:
            raise UserError(
                f"{said}, but the objective {objective.name!r} keeps what the teacher says of the images before the "
                "training: soon it would be compared with a teacher that there is no longer.",
                hint="leave one of the two out",
            )
    if not supervised:
        raise UserError(
            f"{said}, but supervised_weight is 0: without the labels nothing would keep the teacher right.",
            hint="give supervised_weight a value above 0, or choose bdkd, which leaves the teacher as it is",
        )


def trainable_copy(teacher: nn.Module) -> nn.Module:
    """A copy of the teacher whose every parameter takes gradients; the teacher itself is left alone.

    Raises:
        UserError: It has no weights, as a graph in an inference runtime.
    """
    if not any(True for _ in teacher.parameters()):
        raise UserError(
            "An objective trains the teacher along, and this one has no weights that could be trained.",
            hint="give the network with its weights, or an objective that takes a teacher as it is: bdkd, kd",
        )
    return copy.deepcopy(teacher).requires_grad_(True)


def what_became_of_it(before: float, after: float, images: int) -> tuple[str, bool]:
    """A sentence on the teacher's accuracy on `images` images, in [0, 1] before and after, and whether it was spoiled.

    Spoiled means that it ends below the 95 % interval of where it began: the student then learned from worse answers
    than the teacher would have given untouched.
    """
    said = f"The teacher was trained along: it knew {percent(before)} of the select split before, now {percent(after)}"
    low, _ = wilson_interval(round(before * images), images)
    if after >= low:
        return f"{said}. The copy is not kept.", False
    return (
        f"{said}: {points(before - after)} were lost, and the student learned from what was left. A smaller "
        "teacher_lr_share or an objective that leaves the teacher alone (bdkd, kd) avoids that.",
        True,
    )
