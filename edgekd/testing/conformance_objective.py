"""What every objective must do. Inherit the suite, give the objective, and pytest runs it:

class TestMine(ObjectiveConformance):
    name = "mine"
"""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from pydantic import JsonValue
from torch import Tensor

from edgekd.errors import UserError
from edgekd.train.objective import OBJECTIVES, Objective, Signal, Signals, SignalSpec, build_objective

_N, _K, _WIDTH = 12, 5, 6


class ObjectiveConformance:
    """The contract of `edgekd.train.objective.Objective`, as tests.

    Attributes:
        name: Registry key.
        args: Arguments, if other than the defaults.
    """

    name: ClassVar[str]
    args: ClassVar[dict[str, JsonValue]] = {}

    def objective(self, *, student_width: int = _WIDTH) -> Objective[Any]:
        """Bound and prepared, in evaluation mode."""
        torch.manual_seed(0)
        objective = build_objective(self.name, dict(self.args))
        objective.bind(SignalSpec(classes=_K, width=student_width), SignalSpec(classes=_K, width=_WIDTH))
        if objective.needs_class_means:
            objective.prepare(torch.randn(_K, _WIDTH))
        return objective.eval()

    def signals(self, seed: int, *, width: int = _WIDTH, scale: float = 3.0) -> Signals:
        """Random signals of one network."""
        rng = torch.Generator().manual_seed(seed)
        return Signals(
            logits=scale * torch.randn(_N, _K, generator=rng),
            embedding=torch.randn(_N, width, generator=rng),
            feature_map=torch.randn(_N, width, 4, 4, generator=rng),
        )

    def labels(self) -> Tensor:
        """(N,) int64."""
        return torch.arange(_N) % _K

    def value(self, student: Signals, teacher: Signals, labels: Tensor | None = None) -> Tensor:
        """The loss; labels are withheld from an objective that does not declare them."""
        objective = self.objective()
        given = self.labels() if labels is None else labels
        loss: Tensor = objective(student, teacher, given if objective.needs_labels else None)
        return loss

    def test_it_declares_itself_under_its_name(self) -> None:
        kind = OBJECTIVES.get(self.name)
        assert kind.name == self.name
        assert kind.formula
        assert kind.source
        assert kind.needs <= frozenset(Signal)
        assert kind.needs_labels == (Signal.LABELS in kind.needs)
        assert kind.default_weights.distill > 0

    def test_an_unknown_argument_is_an_error(self) -> None:
        with pytest.raises(UserError, match="unknown key 'no_such_argument'"):
            build_objective(self.name, {**self.args, "no_such_argument": 1})

    def test_the_value_is_a_finite_scalar_with_a_gradient_to_the_student_only(self) -> None:
        student, teacher = self.signals(1), self.signals(2)
        student.logits.requires_grad_()
        loss = self.value(student, teacher)
        assert loss.shape == ()
        assert loss.dtype == torch.float32
        gradient = _gradient(loss, student)
        assert torch.isfinite(gradient).all()
        assert gradient.abs().sum() > 0

    def test_the_order_of_the_batch_does_not_matter(self) -> None:
        student, teacher = self.signals(1), self.signals(2)
        order = torch.randperm(_N, generator=torch.Generator().manual_seed(0))
        shuffled = self.value(_picked(student, order), _picked(teacher, order), self.labels()[order])
        torch.testing.assert_close(shuffled, self.value(student, teacher))

    def test_the_gradient_per_sample_does_not_depend_on_how_often_the_batch_is_repeated(self) -> None:
        student, teacher, twice = self.signals(1), self.signals(2), torch.arange(_N).repeat(2)
        doubled = self.value(_picked(student, twice), _picked(teacher, twice), self.labels()[twice])
        torch.testing.assert_close(doubled, self.value(student, teacher))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_signals_with_large_logits_stay_finite(self, dtype: torch.dtype) -> None:
        student, teacher = (_cast(self.signals(seed, scale=300.0), dtype) for seed in (1, 2))
        student.logits.requires_grad_()
        loss = self.value(student, teacher)
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        assert torch.isfinite(_gradient(loss, student)).all()

    def test_a_student_that_equals_its_teacher_has_the_least_loss(self) -> None:
        teacher = self.signals(2)
        least = self.value(teacher, teacher)
        others = [self.value(self.signals(seed), teacher) for seed in range(3, 8)]
        assert all(least < other for other in others)

    def test_all_equal_logits_give_no_nan(self) -> None:
        flat = Signals(logits=torch.zeros(_N, _K, requires_grad=True), embedding=torch.zeros(_N, _WIDTH))
        loss = self.value(flat, self.signals(2))
        assert torch.isfinite(loss)
        assert torch.isfinite(_gradient(loss, flat)).all()


def _gradient(loss: Tensor, student: Signals) -> Tensor:
    return torch.autograd.grad(loss, student.logits)[0]


def _picked(signals: Signals, rows: Tensor) -> Signals:
    embedding, feature_map = signals.embedding, signals.feature_map
    return Signals(
        logits=signals.logits[rows],
        embedding=None if embedding is None else embedding[rows],
        feature_map=None if feature_map is None else feature_map[rows],
    )


def _cast(signals: Signals, dtype: torch.dtype) -> Signals:
    embedding, feature_map = signals.embedding, signals.feature_map
    return Signals(
        logits=signals.logits.to(dtype),
        embedding=None if embedding is None else embedding.to(dtype),
        feature_map=None if feature_map is None else feature_map.to(dtype),
    )
