"""What every objective must do. Inherit the suite, give the objective, and pytest runs it:

class TestMine(ObjectiveConformance):
    name = "mine"
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from pydantic import JsonValue
from torch import Tensor

from edgekd.errors import EdgekdError, UserError
from edgekd.testing.toys import toy_cnn
from edgekd.train.lesson import Lesson
from edgekd.train.loss_plan import Term
from edgekd.train.objective import (
    OBJECTIVES,
    Classifier,
    Objective,
    Review,
    ReviewBatch,
    Signal,
    Signals,
    SignalSpec,
    Survey,
    TrainingData,
    build_objective,
    present,
)
from edgekd.train.peer import Peer
from edgekd.train.signal import signals_from_flat
from edgekd.train.signals import SignalSource
from edgekd.train.survey import SurveyBatch
from edgekd.train.terms import WeightSchedule

Array = npt.NDArray[np.float64]
_IMAGE, _STEP = (3, 8, 8), 1e-5
_N, _K, _WIDTH = 12, 5, 6
_FIT_STEPS = 150
_SIGNALS = ("logits", "embedding", "feature_map", "class_maps")


class ObjectiveConformance:
    """The contract of `edgekd.train.objective.Objective`, as tests.

    Attributes:
        name: Registry key.
        args: Arguments, if other than the defaults.
        differs_in_training: Why a fresh objective has another value in training mode than in evaluation mode, where it
            has: then a student that equals its teacher may have a loss there that it does not have in evaluation mode.
        draws_in_training: Whether it draws random numbers in training mode; no two values are compared there then.
    """

    name: ClassVar[str]
    args: ClassVar[dict[str, JsonValue]] = {}
    differs_in_training: ClassVar[str] = ""
    draws_in_training: ClassVar[bool] = False

    def objective(self, *, student_width: int = _WIDTH, training: bool = False) -> Objective[Any]:
        """Bound and prepared, in evaluation mode unless `training`."""
        torch.manual_seed(0)
        objective = build_objective(self.name, dict(self.args))
        teacher: Any = _spec(_WIDTH) if objective.needs_teacher else None
        objective.bind(_spec(student_width), teacher)
        objective.bind_data(TrainingData(samples=_N, classes=_K, labels=self.labels()))
        if objective.needs_teacher:
            batch = SurveyBatch(self.signals(0), self.labels(), torch.arange(_N))
            objective.prepare(Survey(batches=lambda: iter([batch])))
        return objective.train(training)

    def signals(self, seed: int, *, width: int = _WIDTH, scale: float = 3.0) -> Signals:
        """Random signals of one network."""
        rng = torch.Generator().manual_seed(seed)
        return Signals(
            logits=scale * torch.randn(_N, _K, generator=rng),
            embedding=torch.randn(_N, width, generator=rng),
            feature_map=torch.randn(_N, width, 4, 4, generator=rng),
            class_maps=torch.randn(_N, _K, 4, 4, generator=rng),
            stages=tuple(torch.randn(_N, c, h, w, generator=rng) for c, h, w in _stages(width)),
            classifier=Classifier(
                torch.randn(_K, width, generator=rng) / width**0.5, torch.randn(_K, generator=rng) / 10
            ),
            ids=torch.arange(_N),
        )

    def labels(self) -> Tensor:
        """(N,) int64."""
        return torch.arange(_N) % _K

    def value(
        self, student: Signals, teacher: Signals, labels: Tensor | None = None, *, training: bool = False
    ) -> Tensor:
        """The loss of a fresh one; labels and the teacher are withheld from one that does not declare them."""
        objective = self.objective(training=training)
        given = self.labels() if labels is None else labels
        taught = teacher if objective.needs_teacher else None
        loss: Tensor = objective(student, taught, given if objective.needs_labels else None)
        return loss

    def declared_teacher_loss(self, student: Array, teacher: Array) -> float:
        """What `Objective.teacher_loss` declares for (N, K) logits, computed another way in float64.

        A suite of an objective that trains its teacher overrides it.
        """
        raise NotImplementedError

    def test_it_declares_itself_under_its_name(self) -> None:
        kind = build_objective(self.name, dict(self.args))
        assert kind.name == self.name
        assert kind.formula
        assert kind.source
        assert kind.needs | kind.needs_of_teacher <= frozenset(Signal)
        assert kind.needs_labels == (Signal.LABELS in kind.needs or kind.trains_teacher)
        assert not (kind.trains_teacher and not kind.needs_teacher)
        assert kind.takes_unlabelled or kind.needs_labels
        assert kind.pool_labels == "teacher" or kind.takes_unlabelled
        assert kind.default_weights.distill > 0

    def test_an_unknown_argument_is_an_error(self) -> None:
        with pytest.raises(UserError, match="unknown key 'no_such_argument'"):
            build_objective(self.name, {**self.args, "no_such_argument": 1})

    def test_a_class_declares_what_holds_with_its_default_arguments(self) -> None:
        kind = OBJECTIVES.get(self.name)
        plain = build_objective(self.name, {})
        for what in ("needs", "needs_of_teacher", "needs_labels", "takes_unlabelled"):
            assert getattr(plain, what) == getattr(kind, what)

    @pytest.mark.parametrize("training", [False, True])
    def test_the_value_is_a_finite_scalar_with_a_gradient_to_all_that_it_reads_of_the_student(
        self, training: bool
    ) -> None:
        student, teacher = self.signals(1), self.signals(2)
        read = self._read(student)
        loss = self.value(student, teacher, training=training)
        assert loss.shape == ()
        assert loss.dtype == torch.float32
        for gradient in torch.autograd.grad(loss, read):
            assert torch.isfinite(gradient).all()
            assert gradient.abs().sum() > 0

    def test_training_mode_gives_the_same_value_unless_the_suite_says_why_not(self) -> None:
        teacher = self.signals(2)
        same = [
            torch.allclose(self.value(student, teacher), self.value(student, teacher, training=True), atol=1e-6)
            for student in (self.signals(1), teacher)
        ]
        assert all(same) != bool(self.differs_in_training)

    @pytest.mark.parametrize("training", [False, True])
    def test_the_order_of_the_batch_does_not_matter(self, training: bool) -> None:
        self._skip_if_drawn(training=training)
        student, teacher = self.signals(1), self.signals(2)
        order = torch.randperm(_N, generator=torch.Generator().manual_seed(0))
        shuffled = self.value(_picked(student, order), _picked(teacher, order), self.labels()[order], training=training)
        torch.testing.assert_close(shuffled, self.value(student, teacher, training=training))

    @pytest.mark.parametrize("training", [False, True])
    def test_the_gradient_per_sample_does_not_depend_on_how_often_the_batch_is_repeated(self, training: bool) -> None:
        self._skip_if_drawn(training=training)
        student, teacher, twice = self.signals(1), self.signals(2), torch.arange(_N).repeat(2)
        doubled = self.value(_picked(student, twice), _picked(teacher, twice), self.labels()[twice], training=training)
        torch.testing.assert_close(doubled, self.value(student, teacher, training=training))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_signals_with_large_logits_stay_finite(self, dtype: torch.dtype) -> None:
        student, teacher = (_cast(self.signals(seed, scale=300.0), dtype) for seed in (1, 2))
        read = self._read(student)
        loss = self.value(student, teacher)
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(loss, read))

    def test_a_pass_in_evaluation_mode_changes_no_state(self) -> None:
        objective = self.objective()
        before = {name: value.clone() for name, value in objective.state_dict().items()}
        taught = self.signals(2) if objective.needs_teacher else None
        objective(self.signals(1), taught, self.labels() if objective.needs_labels else None)
        assert all(torch.equal(before[name], value) for name, value in objective.state_dict().items())

    @pytest.mark.parametrize("training", [False, True])
    def test_a_student_that_equals_its_teacher_has_the_least_loss(self, training: bool) -> None:
        if not OBJECTIVES.get(self.name).needs_teacher:
            pytest.skip("there is no teacher to equal")
        objective, teacher = self.objective(training=training), self.signals(2)
        labels = self.labels() if objective.needs_labels else None
        if objective.adapts:
            _fit(objective, lambda: objective(teacher, teacher, labels))
        least = objective(teacher, teacher, labels)
        others = [objective(self.signals(seed), teacher, labels) for seed in range(3, 8)]
        assert all(least < other for other in others)

    def test_a_teacher_is_trained_by_its_declared_loss_alone_or_not_at_all(self) -> None:
        objective = self.objective()
        student, teacher = (_cast(self.signals(seed), torch.float64) for seed in (1, 2))
        labels = self.labels()
        if not objective.trains_teacher:
            with pytest.raises(EdgekdError, match="does not train its teacher"):
                objective.teacher_loss(student, teacher, labels)
            return
        logits = teacher.logits.requires_grad_()
        loss = objective.teacher_loss(student, replace(teacher, logits=logits), labels)
        s, t = student.logits.numpy(), logits.detach().numpy()
        assert loss.item() == pytest.approx(self.declared_teacher_loss(s, t), rel=1e-9)
        (gradient,) = torch.autograd.grad(loss, logits)
        expected = _differences(lambda moved: self.declared_teacher_loss(s, moved), t)
        torch.testing.assert_close(gradient, torch.from_numpy(expected), rtol=1e-5, atol=1e-7)
        self._check_apart()

    def _skip_if_drawn(self, *, training: bool) -> None:
        if training and self.draws_in_training:
            pytest.skip("it draws random numbers in training mode")

    def _check_apart(self) -> None:
        """In a lesson, neither network is moved by the loss of the other, and each by its own."""
        both = _learning_together(self.name, self.args, zeroed=None)
        without_student = _learning_together(self.name, self.args, zeroed="forward")
        without_teacher = _learning_together(self.name, self.args, zeroed="teacher_loss")
        assert _equal(without_teacher[0], both[0])
        assert _equal(without_student[1], both[1])
        assert not _equal(without_student[0], both[0])
        assert not _equal(without_teacher[1], both[1])

    def test_its_state_is_all_that_a_later_run_needs(self) -> None:
        first = self.objective()
        with torch.no_grad():
            for value in first.state_dict().values():
                if value.is_floating_point():
                    value.mul_(0.5)
        later = self.objective()
        later.load_state_dict(first.state_dict())
        taught = self.signals(2) if first.needs_teacher else None
        labels = self.labels() if first.needs_labels else None
        assert torch.equal(later(self.signals(1), taught, labels), first(self.signals(1), taught, labels))

    def test_it_has_a_last_word_or_none_and_that_is_a_finite_layer_and_leaves_its_own_state_alone(self) -> None:
        objective, student = self.objective(), self.signals(1)
        classifier = Classifier(*(x.clone() for x in present(student.classifier, Signal.CLASSIFIER) if x is not None))
        embedding = present(student.embedding, Signal.EMBEDDING)
        said = replace(student, logits=F.linear(embedding, *classifier))
        batch = ReviewBatch(said, self.labels())
        before = {name: value.clone() for name, value in objective.state_dict().items()}
        found = []
        for _ in range(2):
            layer = Classifier(*(x.clone() for x in classifier if x is not None))
            review = Review(classifier=layer, training=lambda most: iter([batch]), select=lambda: iter([batch]))
            conclusion = objective.conclude(review)
            assert all(torch.isfinite(x).all() for x in layer if x is not None)
            assert bool(conclusion.decisions) == objective.concludes
            assert objective.concludes or torch.equal(layer.weight, classifier.weight)
            json.dumps(dict(conclusion.metrics), allow_nan=False)
            found.append(layer.weight)
        assert torch.equal(*found)
        assert all(torch.equal(before[name], value) for name, value in objective.state_dict().items())

    def test_a_student_that_says_the_same_of_every_sample_gives_no_nan(self) -> None:
        flat = _each(self.signals(1), torch.zeros_like)
        read = self._read(flat)
        loss = self.value(flat, self.signals(2))
        assert torch.isfinite(loss)
        assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(loss, read))

    def _read(self, student: Signals) -> list[Tensor]:
        """The student's signals that the objective declares, made to ask for a gradient."""
        needs = build_objective(self.name, dict(self.args)).needs
        read = [present(getattr(student, name), name) for name in _SIGNALS if name in needs]
        if Signal.STAGES in needs:
            read += present(student.stages, Signal.STAGES)
        return [signal.requires_grad_() for signal in read]


def _learning_together(
    name: str, args: Mapping[str, JsonValue], *, zeroed: str | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients of two toy networks after a step of one lesson, student's and teacher's; one loss may be made 0."""
    kind, networks = OBJECTIVES.get(name), (toy_cnn(classes=_K, seed=1), toy_cnn(classes=_K, seed=2))
    objective = build_objective(name, args)
    needs = (kind.needs, kind.needs_of_teacher)
    student, teacher = (SignalSource(net, need, _IMAGE) for net, need in zip(networks, needs, strict=True))
    objective.bind(student.spec(), teacher.spec())
    objective.bind_data(TrainingData(samples=_N, classes=_K, labels=torch.arange(_N) % _K))
    if zeroed is not None:
        setattr(objective, zeroed, lambda s, t, labels: 0.0 * (s.logits.sum() + t.logits.sum()))
    schedule = WeightSchedule(weight=1, final_weight=1, curve="linear", from_epoch=0, until_epoch=1, warmup_epochs=0)
    term = Term(label=name, objective=objective, schedule=schedule)
    lesson = Lesson(student, [term], 0.0, peer=Peer(teacher, [objective], 0.0)).train()
    images = torch.randn(_N, *_IMAGE, generator=torch.Generator().manual_seed(0))
    loss, _ = lesson(images, torch.arange(_N) % _K, torch.arange(_N), None, 1.0, [1.0])
    loss.backward()
    first, second = ([present(p.grad, "a gradient") for p in net.parameters()] for net in networks)
    return first, second


def _equal(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def _differences(function: Callable[[Array], float], at: Array) -> Array:
    """The gradient of a function by central differences in float64."""
    found = np.zeros_like(at)
    for place in np.ndindex(*at.shape):
        step = np.zeros_like(at)
        step[place] = _STEP
        found[place] = (function(at + step) - function(at - step)) / (2 * _STEP)
    return found


def _fit(objective: Objective[Any], loss: Callable[[], Tensor]) -> None:
    """Trains the objective's own layers alone."""
    layers = list(objective.parameters())
    optimizer = torch.optim.Adam(layers, lr=0.02)
    for _ in range(_FIT_STEPS):
        for layer, gradient in zip(layers, torch.autograd.grad(loss(), layers), strict=True):
            layer.grad = gradient
        optimizer.step()


def _stages(width: int) -> tuple[tuple[int, int, int], ...]:
    return ((width // 2, 8, 8), (width, 4, 4))


def _spec(width: int) -> SignalSpec:
    return SignalSpec(classes=_K, width=width, channels=width, stages=_stages(width))


def _each(signals: Signals, change: Callable[[Tensor], Tensor]) -> Signals:
    """The signals with everything changed that is there per sample."""
    flat = {name: x for name, x in signals.flat().items() if name != Signal.IDS}
    changed = {name: x if f"{Signal.CLASSIFIER}." in name else change(x) for name, x in flat.items()}
    return replace(signals_from_flat(changed), ids=signals.ids)


def _picked(signals: Signals, rows: Tensor) -> Signals:
    return replace(_each(signals, lambda x: x[rows]), ids=present(signals.ids, Signal.IDS)[rows])


def _cast(signals: Signals, dtype: torch.dtype) -> Signals:
    return _each(signals, lambda x: x.to(dtype))
