"""One step's computation: further views that an objective asks for are seen in the same pass, by those that asked."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import Tensor

from edgekd.core.schema import Schema
from edgekd.testing.toys import toy_cnn
from edgekd.train.lesson import Lesson
from edgekd.train.loss_plan import Term
from edgekd.train.objective import LossWeights, Objective, Signal, Signals
from edgekd.train.signals import SignalSource
from edgekd.train.terms import WeightSchedule

IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class NoArguments(Schema):
    pass


class Looking(Objective[NoArguments]):
    """Keeps what it is shown; asks for as many further views as it is told, each brighter than the last."""

    name = "looking"
    Config = NoArguments
    needs: ClassVar = frozenset({Signal.LOGITS})
    needs_teacher = False
    t_squared = False
    default_weights = LossWeights(supervised=1.0, distill=1.0)

    def __init__(self, views: int) -> None:
        super().__init__(NoArguments())
        self.views = views
        self.shown: list[Signals] = []

    def more_images(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(images + 1 + number for number in range(self.views))

    def forward(self, student: Signals, teacher: Signals | None, labels: Tensor | None) -> Tensor:
        self.shown.append(student)
        return student.logits.mean()


class Adapting(Looking):
    """Looks through a layer of its own with statistics."""

    name = "adapting"

    def __init__(self) -> None:
        super().__init__(0)
        self.layer = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))

    def forward(self, student: Signals, teacher: Signals | None, labels: Tensor | None) -> Tensor:
        self.shown.append(student)
        out: Tensor = self.layer(student.logits)
        return out.mean() + float("inf")


def lesson(*objectives: Looking, joint: bool = False) -> tuple[Lesson, list[int]]:
    """In evaluation mode, and the sizes of the batches that its student saw."""
    seen: list[int] = []
    student = toy_cnn(seed=1)
    student.register_forward_hook(lambda _, args, output: seen.append(len(args[0])))
    schedule = WeightSchedule(weight=1, final_weight=1, curve="linear", from_epoch=0, until_epoch=1, warmup_epochs=0)
    terms = [
        Term(label=str(number), objective=objective, schedule=schedule) for number, objective in enumerate(objectives)
    ]
    source = SignalSource(student, frozenset({Signal.LOGITS}), (3, 8, 8))
    seen.clear()
    return Lesson(source, terms, 0.0, joint=joint).eval(), seen


@pytest.mark.parametrize("channels_last", [False, True])
def test_each_objective_sees_the_views_that_it_asked_for_from_one_pass(channels_last: bool) -> None:
    none, one, two = Looking(0), Looking(1), Looking(2)
    taught, seen = lesson(none, one, two)
    images = IMAGES.contiguous(memory_format=torch.channels_last) if channels_last else IMAGES
    taught(images, None, torch.arange(3), None, 0.0, [1.0, 1.0, 1.0])
    assert seen == [12]
    assert [len(objective.shown[0].more) for objective in (none, one, two)] == [0, 1, 2]
    student = toy_cnn(seed=1).eval()
    for objective in (none, one, two):
        torch.testing.assert_close(objective.shown[0].logits, student(IMAGES))
        assert objective.shown[0].ids is not None
        for number, view in enumerate(objective.shown[0].more):
            torch.testing.assert_close(view.logits, student(IMAGES + 1 + number))


def test_views_of_an_objective_that_is_left_out_are_not_computed() -> None:
    none, two = Looking(0), Looking(2)
    taught, seen = lesson(none, two)
    taught(IMAGES, None, torch.arange(3), None, 0.0, [1.0, 0.0])
    assert seen == [3]
    assert not two.shown


def test_of_several_processes_an_objective_that_is_left_out_has_gradients_of_zero_and_is_not_run() -> None:
    adapting = Adapting()
    taught, _ = lesson(Looking(0), adapting, joint=True)
    loss, _ = taught.train()(IMAGES, None, torch.arange(3), None, 0.0, [1.0, 0.0])
    loss.backward()
    assert torch.isfinite(loss)
    assert not adapting.shown
    assert adapting.layer[1].num_batches_tracked == 0
    assert all(p.grad is not None and not p.grad.any() for p in adapting.parameters())
    taught.forget_idle_gradients_([1.0, 0.0])
    assert all(p.grad is None for p in adapting.parameters()), "weight decay would move what has a gradient of zero"
    assert all(p.grad is not None for p in taught.student.parameters())
