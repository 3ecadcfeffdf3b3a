"""The outer step: its gradient against one that is exact, what it leaves alone, and what a training around it sees."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from edgekd.core.digest import Json
from edgekd.data.dataset import Dataset
from edgekd.errors import UserError
from edgekd.testing.harness import make_context
from edgekd.testing.toy_data import toy_dataset
from edgekd.testing.toys import toy_cnn
from edgekd.train.batches import TrainBatch, TrainBatches
from edgekd.train.fit import distil_
from edgekd.train.lesson import Lesson
from edgekd.train.loop import Loop
from edgekd.train.loss_plan import Term
from edgekd.train.objective import Signal, Signals, SignalSpec, build_objective
from edgekd.train.outer import REACH, InnerStep, OuterStep
from edgekd.train.projection import WeightProjection
from edgekd.train.signals import SignalSource
from edgekd.train.terms import WeightSchedule
from edgekd.train.weighing import Weighing
from tests.train.conftest import PREPROCESSING, Train, config
from tests.train.test_resume import EVERY_STEP, DropoutNet, finished

TGEO: dict[str, Any] = {"objective": "tgeo", "objective_args": {"every": 2}}
IDS = torch.arange(10)
K, RATE, WEIGHT, DECAY, MOMENTUM = 3, 0.3, 0.7, 0.01, 0.9


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def smooth_student() -> nn.Module:
    torch.manual_seed(3)
    layers = (nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, K))
    return nn.Sequential(*layers).double()


class Problem:
    """A lesson of tgeo beside kd in float64, a training batch and a held-out one."""

    def __init__(self) -> None:
        self.student = smooth_student().train()
        objective: Any = build_objective("tgeo", {"hidden": 5, "rate": 0.01})
        objective.bind(SignalSpec(classes=K), SignalSpec(classes=K))
        objective.double().controller.load_state_dict(
            {name: 0.3 * drawn(7, *x.shape) for name, x in objective.controller.state_dict().items()}
        )
        objective.means.copy_(drawn(8, K, K).softmax(1))
        self.objective: Weighing[Any] = objective
        schedule = WeightSchedule(
            weight=1, final_weight=1, curve="linear", from_epoch=0, until_epoch=1, warmup_epochs=0
        )
        terms = [
            Term(label=each.name, objective=each, schedule=schedule) for each in (build_objective("kd", {}), objective)
        ]
        self.lesson = Lesson(SignalSource(self.student, frozenset({Signal.LOGITS}), (3, 2, 2)), terms, 0.0).train()
        self.images, self.labels, self.teacher = drawn(1, 10, 3, 2, 2), torch.arange(10) % K, 2 * drawn(2, 10, K)
        self.held = TrainBatch(drawn(4, 8, 3, 2, 2), torch.arange(8) % K, np.arange(8))
        batches: Any = SimpleNamespace(batch=lambda number: self.held, samples=8, split=range(18))
        fabric: Any = SimpleNamespace(world_size=1, device=torch.device("cpu"))
        self.outer = OuterStep(self.lesson, 1, batches, fabric)

    def inner(self) -> InnerStep:
        return InnerStep(
            images=self.images,
            labels=self.labels,
            ids=IDS,
            teacher={"logits": self.teacher},
            weights=[0.4, WEIGHT],
            rate=RATE,
        )

    def loss(self) -> Tensor:
        loss, _ = self.lesson(self.images, self.labels, IDS, {"logits": self.teacher}, 0.2, [0.4, WEIGHT])
        assert isinstance(loss, Tensor)
        return loss

    def exact(self, optimizer: torch.optim.SGD, nesterov: bool) -> list[Tensor]:
        """dV/dw by autograd through the step that the optimizer is about to take, second derivatives and all."""
        theta = {name: p.detach().clone().requires_grad_() for name, p in self.student.named_parameters()}
        w = {name: p.detach().clone().requires_grad_() for name, p in self.objective.controller.named_parameters()}
        buffers = {name: buffer.clone() for name, buffer in self.student.named_buffers()}
        logits = functional_call(self.student, (theta, buffers), (self.images,))
        said = Signals(logits=self.teacher)
        state = self.objective.state(Signals(logits=logits.detach()), said, self.labels)
        alpha = functional_call(self.objective.controller, w, (state,)).sigmoid()[:, 0]
        p, q = ((x / 1.5).log_softmax(1) for x in (self.teacher, logits))
        kd = 1.5**2 * (p.exp() * (p - q)).sum(1)
        ce = F.cross_entropy(logits, self.labels, reduction="none")
        other = build_objective("kd", {})(Signals(logits=logits), said, None)
        total = 0.2 * ce.mean() + 0.4 * other + WEIGHT * (alpha * kd + (1 - alpha) * ce).mean()
        gradients = torch.autograd.grad(total, list(theta.values()), create_graph=True)
        ahead = {}
        for (name, value), gradient, parameter in zip(theta.items(), gradients, self.student.parameters(), strict=True):
            held = optimizer.state[parameter]["momentum_buffer"]
            decayed = gradient + DECAY * value
            moved = MOMENTUM * held + decayed
            ahead[name] = value - RATE * (decayed + MOMENTUM * moved if nesterov else moved)
        found = functional_call(self.student, (ahead, buffers), (self.held.images,))
        return list(torch.autograd.grad(F.cross_entropy(found, self.held.labels), list(w.values())))


@pytest.mark.parametrize("nesterov", [False, True])
def test_its_gradient_is_that_through_the_step_of_sgd_with_momentum_and_decay(nesterov: bool) -> None:
    problem = Problem()
    optimizer = torch.optim.SGD(
        problem.student.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY, nesterov=nesterov
    )
    for _ in range(2):  # the first fills the momentum
        optimizer.zero_grad()
        expected = problem.exact(optimizer, nesterov) if optimizer.state else []
        problem.outer.begin()
        problem.loss().backward()
        optimizer.step()
    v = problem.outer._direction()
    norm = float(torch.cat([x.flatten() for x in v.values()]).norm())
    for reach, tolerance in ((REACH, 1e-4), (REACH / 100, 1e-6)):
        slopes = problem.outer.slopes(problem.inner(), v, reach / norm)
        assert slopes.dtype == torch.float64
        for mine, other in zip(problem.outer.gradient(problem.inner(), slopes), expected, strict=True):
            assert float(other.abs().max()) > 1e-5
            scale = 1 + MOMENTUM if nesterov else 1.0
            assert float((scale * mine - other).abs().max()) < tolerance * float(other.abs().max())


def test_it_moves_the_controller_and_nothing_else_and_the_weights_of_each_image_with_it() -> None:
    problem = Problem()
    problem.outer.begin()
    problem.loss()
    assert problem.objective.seen is not None
    before = problem.objective.weights(problem.objective.seen)
    student = {name: x.clone() for name, x in problem.student.state_dict().items()}
    controller = [p.clone() for p in problem.objective.controller.parameters()]
    problem.outer.finish(problem.inner())
    assert all(torch.equal(student[name], x) for name, x in problem.student.state_dict().items())
    for old, new in zip(controller, problem.objective.controller.parameters(), strict=True):
        assert bool((old != new).any())
        assert not new.requires_grad
    assert bool((problem.objective.weights(problem.objective.seen) != before).all())
    torch.testing.assert_close(problem.outer.found[0].double(), before.mean(0), rtol=1e-6, atol=0)


def test_the_controllers_gradient_points_to_what_the_held_out_images_want() -> None:
    problem = Problem()
    problem.teacher = 8 * F.one_hot((problem.labels + 1) % K, K).double()
    problem.held = TrainBatch(problem.images, problem.labels, np.arange(10))
    for _ in range(20):
        problem.outer.begin()
        problem.loss()
        problem.outer.finish(problem.inner())
    assert problem.objective.seen is not None
    assert float(problem.objective.weights(problem.objective.seen)[:, 0].max()) < 0.5, "the teacher is always wrong"


def test_held_out_images_that_pull_nowhere_move_nothing() -> None:
    problem = Problem()
    with torch.no_grad():
        problem.student[-1].weight.zero_()  # type: ignore[index, operator, union-attr]
        problem.student[-1].bias.copy_(torch.tensor([1e4, 0.0, 0.0]))  # type: ignore[index, operator, union-attr]
    problem.held = replace(problem.held, labels=torch.zeros(8, dtype=torch.int64))
    before = [p.clone() for p in problem.objective.controller.parameters()]
    problem.outer.begin()
    problem.loss()
    problem.outer.finish(problem.inner())
    pairs = zip(before, problem.objective.controller.parameters(), strict=True)
    assert all(torch.equal(old, new) for old, new in pairs)


@pytest.fixture
def loops(monkeypatch: pytest.MonkeyPatch) -> list[Loop]:
    """Every training's loop, once it has run."""
    kept: list[Loop] = []
    run = Loop.run

    def watched(loop: Loop) -> dict[str, float]:
        kept.append(loop)
        return run(loop)

    monkeypatch.setattr(Loop, "run", watched)
    return kept


def test_held_out_images_are_never_trained_on_and_the_others_all_are(
    train: Train, data: Dataset, monkeypatch: pytest.MonkeyPatch, loops: list[Loop]
) -> None:
    shown: dict[bool, list[int]] = {True: [], False: []}
    batch = TrainBatches._batch

    def watched(batches: TrainBatches, pixels: Any, ids: Any) -> TrainBatch:
        shown[loops == [] or batches is loops[-1].batches] += ids.tolist()
        return batch(batches, pixels, ids)

    monkeypatch.setattr(TrainBatches, "_batch", watched)
    _, report, _ = train(**TGEO)
    trained, judged = set(shown[True]), set(shown[False])
    assert len(judged) == 6
    assert not trained & judged
    assert trained | judged == set(range(64))
    assert report.steps == 3 * 4
    outer = loops[0].outer
    assert outer is not None
    assert outer.steps == 6
    assert any("tgeo held out 6 of 64 training images" in said for said in report.decisions)
    assert report.outer_seconds is not None
    assert 0 < report.outer_seconds < report.seconds


def test_class_means_are_those_of_the_images_that_are_trained_on(
    train: Train, data: Dataset, teacher: nn.Module, loops: list[Loop]
) -> None:
    train(**TGEO, epochs=1)
    rows = loops[0].batches.rows
    assert rows is not None
    assert data.train.labels is not None
    pixels = data.train.images(rows, PREPROCESSING).transpose(0, 3, 1, 2) / 255
    with torch.no_grad():
        said = teacher(torch.from_numpy(pixels).float() * 2 - 1).softmax(1)
    for k in range(4):
        found = loops[0].lesson.objectives[0].means[k]  # type: ignore[index]
        torch.testing.assert_close(found, said[data.train.labels[rows] == k].mean(0), rtol=1e-4, atol=1e-5)


def test_what_select_and_test_hold_changes_no_bit_of_the_student(train: Train, data: Dataset) -> None:
    other = toy_dataset(n=80, seed=9)
    swapped = replace(data, select=other.select, test=other.test)
    mine, _, _ = train(folder="mine", epochs=1, **TGEO)
    theirs, _, _ = train(folder="theirs", epochs=1, on=swapped, **TGEO)
    assert all(torch.equal(x, y) for x, y in zip(mine.state_dict().values(), theirs.state_dict().values(), strict=True))


def test_dropout_drops_in_the_two_passes_of_a_difference_what_it_dropped_in_the_training(train: Train) -> None:
    masks: list[Tensor] = []
    student = DropoutNet()
    student.drop.register_forward_hook(lambda part, _, out: masks.append(out == 0) if part.training else None)
    train(student=student, epochs=1, **TGEO)
    assert len(masks) == 4 + 2 * 3
    for taught, held, ahead, behind in (masks[0:4], masks[5:9]):
        assert torch.equal(taught, ahead)
        assert torch.equal(taught, behind)
        assert taught.shape != held.shape


def test_in_mixed_precision_the_difference_is_taken_in_all_bits_of_float32(train: Train) -> None:
    seen: list[tuple[torch.dtype, bool]] = []
    student, allowed = toy_cnn(seed=1), torch.backends.cudnn.allow_tf32

    def look(part: nn.Module, _: object, out: Tensor) -> None:
        if part.training:
            seen.append((out.dtype, torch.backends.cudnn.allow_tf32))

    student.register_forward_hook(look)
    train(student=student, epochs=1, precision="bf16-mixed", **TGEO)
    taught, apart = (torch.bfloat16, allowed), (torch.float32, False)
    assert seen == [taught, *[apart] * 3, taught] * 2
    assert torch.backends.cudnn.allow_tf32 == allowed


def test_an_interruption_changes_neither_student_nor_controller(
    tmp_path: Path, data: Dataset, teacher: nn.Module, loops: list[Loop]
) -> None:
    expected, whole = finished(tmp_path / "whole", data, teacher, [], EVERY_STEP, **TGEO)
    got, report = finished(tmp_path / "cut", data, teacher, [8, 21], EVERY_STEP, **TGEO)
    assert report.resumed_at_step == 10, "from step 2, and from there 8 steps on: both were cut within an outer step"
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    first, last = (loop.lesson.objectives.state_dict() for loop in (loops[0], loops[-1]))
    assert all(torch.equal(first[name], last[name]) for name in first)
    assert report.decisions == whole.decisions


def test_a_controller_that_stands_still_gives_another_student(
    train: Train, monkeypatch: pytest.MonkeyPatch, loops: list[Loop]
) -> None:
    learned, _, _ = train(folder="learned", epochs=1, **TGEO)
    monkeypatch.setattr(OuterStep, "finish", lambda outer, inner: None)
    fixed, _, _ = train(folder="fixed", epochs=1, **TGEO)
    assert any(not torch.equal(x, y) for x, y in zip(learned.parameters(), fixed.parameters(), strict=True))


class Coarse(WeightProjection):
    """Weights rounded to eighths."""

    def plain(self) -> Json:
        return "eighths"

    def bind(self, module: nn.Module) -> None:
        self.parameters = list(module.parameters())

    @torch.no_grad()
    def project_(self) -> None:
        self.masters = [p.clone() for p in self.parameters]
        for p in self.parameters:
            p.copy_((8 * p).round() / 8)

    @torch.no_grad()
    def restore_(self) -> None:
        for p, master in zip(self.parameters, self.masters, strict=True):
            p.copy_(master)


def test_a_projected_student_is_judged_and_compared_at_projected_weights(
    tmp_path: Path, data: Dataset, teacher: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, finish = [], OuterStep.finish

    def watched(outer: OuterStep, inner: InnerStep) -> None:
        looked.append([*outer._before.values(), *outer._student().values()])
        finish(outer, inner)

    monkeypatch.setattr(OuterStep, "finish", watched)
    distil_(toy_cnn(seed=1), teacher, data, PREPROCESSING, config(**TGEO), make_context(tmp_path), projection=Coarse())
    assert len(looked) == 6
    assert all(torch.equal(8 * x, (8 * x).round()) for step in looked for x in step)


def test_it_goes_with_the_further_views_of_another_objective(train: Train) -> None:
    options = {"objectives": [{"name": "sla", "weight": 0.5}, {"name": "tgeo", "args": {"every": 2}}]}
    _, report, _ = train(epochs=1, **options)
    assert set(report.distill_losses) == {"sla", "tgeo"}
    assert any("in 2 step(s) of a controller" in said for said in report.decisions)


def test_a_term_that_is_over_takes_no_more_outer_steps(train: Train) -> None:
    terms = [{"name": "tgeo", "until_epoch": 1, "args": {"every": 2}}, {"name": "kd", "from_epoch": 1}]
    _, report, _ = train(epochs=2, objectives=terms)
    assert any("in 2 step(s) of a controller" in said for said in report.decisions)


def test_a_term_that_begins_later_counts_its_own_steps(train: Train) -> None:
    terms = [{"name": "kd", "until_epoch": 1}, {"name": "tgeo", "from_epoch": 1, "args": {"every": 100}}]
    _, report, _ = train(folder="late", epochs=2, objectives=terms)
    assert any("in 1 step(s) of a controller" in said for said in report.decisions)


def test_data_without_labels_too_few_images_and_two_that_hold_out_are_errors(
    train: Train, unlabelled: Dataset, data: Dataset
) -> None:
    with pytest.raises(UserError, match="'tgeo' needs labels, and the data has none"):
        train(on=unlabelled, **TGEO)
    few = replace(data, train=data.train.subset(range(12)))
    with pytest.raises(UserError, match="too few to learn from"):
        train(on=few, **TGEO)
    with pytest.raises(UserError, match="'tgeo' and 'tgeo' each hold out training images"):
        train(objectives=[{"name": "tgeo"}, {"name": "tgeo"}])
    with pytest.raises(UserError, match="held_out"):
        train(objective="tgeo", objective_args={"held_out": 0})
