"""A teacher that is trained along: both networks learn, the given one is left alone, and all else sees it move."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgekd.data.dataset import Dataset
from edgekd.errors import UserError
from edgekd.nn.mode import evaluating
from edgekd.testing.harness import make_context
from edgekd.testing.toys import toy_cnn
from edgekd.train import fit
from edgekd.train.assemble import optimizer_for
from edgekd.train.fit import FitReport, distil_
from edgekd.train.group import TeacherGroup
from edgekd.train.lesson import Lesson
from edgekd.train.loss_plan import Term
from edgekd.train.objective import build_objective
from edgekd.train.peer import Peer, detached, trainable_copy, what_became_of_it
from edgekd.train.signal import Signal
from edgekd.train.signals import SignalSource
from edgekd.train.terms import WeightSchedule
from tests.train.conftest import PREPROCESSING, config, events
from tests.train.test_lesson import Looking

LOGITS = frozenset({Signal.LOGITS})
IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(6) % 4


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(before: dict[str, Tensor], module: nn.Module) -> set[str]:
    return {name for name, value in module.state_dict().items() if not torch.equal(before[name], value)}


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The copies of teachers that trainings make, in their order."""
    made: list[nn.Module] = []

    def kept(teacher: nn.Module) -> nn.Module:
        made.append(trainable_copy(teacher))
        return made[-1]

    monkeypatch.setattr(fit, "trainable_copy", kept)
    return made


def taught(
    folder: Path, data: Dataset, student: nn.Module, teacher: nn.Module | None, **options: Any
) -> tuple[FitReport, Any]:
    ctx = make_context(folder)
    return distil_(student, teacher, data, PREPROCESSING, config(**{"objective": "bdkd-online", **options}), ctx), ctx


@pytest.mark.parametrize("objective", ["bdkd-online", "dml"])
def test_both_networks_learn_and_the_given_teacher_does_not_move(
    tmp_path: Path, data: Dataset, teacher: nn.Module, copies: list[nn.Module], objective: str
) -> None:
    frozen = copy.deepcopy(teacher).requires_grad_(False)
    student = toy_cnn(seed=1)
    first, given = state(student), state(frozen)
    report, ctx = taught(tmp_path, data, student, frozen, objective=objective)
    assert not changed(given, frozen)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    every = set(given)
    assert changed(first, student) == every
    assert changed(given, copies[0]) == every, "weights, and BatchNorm statistics"
    assert report.teacher is not None
    parts = (report.teacher.loss, report.supervised_loss, report.distill_losses[objective])
    assert report.loss == pytest.approx(sum(part or 0 for part in parts), rel=1e-5)
    assert report.decisions[1] == (
        "The teacher was trained along: it knew 100.0 % of the select split before, now 100.0 %. The copy is not kept."
    )
    assert not list(ctx.scratch.glob("teacher-*")), "no answer of it is stored"


def test_two_networks_that_change_places_learn_the_same_from_each_other(
    tmp_path: Path, data: Dataset, copies: list[nn.Module]
) -> None:
    options = {"objective": "dml", "teacher_lr_share": 1.0, "grad_clip": 0.5}
    one, other = toy_cnn(seed=1), toy_cnn(seed=2)
    taught(tmp_path / "a", data, one, toy_cnn(seed=2), **options)
    taught(tmp_path / "b", data, other, toy_cnn(seed=1), **options)
    for student, peer in ((one, copies[1]), (other, copies[0])):
        for name, value in student.state_dict().items():
            torch.testing.assert_close(value, peer.state_dict()[name], rtol=1e-4, atol=1e-6)
    assert not torch.equal(one.state_dict()["classifier.weight"], other.state_dict()["classifier.weight"])


def test_a_teacher_learns_at_a_share_of_the_rate_and_counts_its_gradient_by_itself() -> None:
    student, teacher = (SignalSource(toy_cnn(seed=seed), LOGITS, (3, 8, 8)) for seed in (1, 2))
    peer = Peer(teacher, [], 0.0)
    lesson = Lesson(student, [], 0.0, peer=peer)
    groups = optimizer_for(lesson, config(teacher_lr_share=0.3), peer).param_groups
    shares = {id(parameter): group["lr_share"] for group in groups for parameter in group["params"]}
    assert {shares[id(parameter)] for parameter in student.parameters()} == {1.0}
    assert {shares[id(parameter)] for parameter in teacher.parameters()} == {0.3}
    assert len(shares) == len(list(lesson.parameters()))
    ours, theirs = lesson.networks()
    assert {id(p) for p in ours} == {id(p) for p in student.parameters()}
    assert {id(p) for p in theirs} == {id(p) for p in teacher.parameters()}
    assert len(Lesson(student, [], 0.0).networks()) == 1


def joint_lesson(*, joint: bool = False) -> tuple[Lesson, Peer, Looking]:
    """BD-KD with its teacher trained along, beside an objective that looks at what it is shown."""
    online, looking = build_objective("bdkd-online", {}), Looking(0)
    schedule = WeightSchedule(weight=1, final_weight=1, curve="linear", from_epoch=0, until_epoch=1, warmup_epochs=0)
    terms = [Term(label=str(n), objective=o, schedule=schedule) for n, o in enumerate((online, looking))]
    student, teacher = (SignalSource(toy_cnn(seed=seed), LOGITS, (3, 8, 8)) for seed in (1, 2))
    peer = Peer(teacher, [online, looking], 0.0, joint=joint)
    return Lesson(student, terms, 0.0, joint=joint, peer=peer).train(), peer, looking


def test_the_teachers_loss_is_its_cross_entropy_and_what_is_declared_with_the_students_weights() -> None:
    lesson, peer, _ = joint_lesson()
    student, teacher = copy.deepcopy(lesson.student), copy.deepcopy(peer.source)
    loss, _ = lesson(IMAGES, LABELS, torch.arange(6), None, 0.5, [2.0, 0.0])
    loss.backward()
    s, t = student(IMAGES).logits.detach(), teacher(IMAGES).logits
    log_t, log_s = (t / 4).log_softmax(1), (s / 4).log_softmax(1)
    divergence = 16 * (log_s.exp() * (log_s - log_t)).sum(1).mean()
    (0.5 * nn.functional.cross_entropy(t, LABELS) + 2.0 * divergence).backward()
    for mine, expected in zip(peer.source.parameters(), teacher.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, expected.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("joint", [False, True])
def test_where_no_objective_that_counts_trains_it_the_teacher_rests_and_answers_who_asks(joint: bool) -> None:
    lesson, peer, looking = joint_lesson(joint=joint)
    before = state(peer)
    with evaluating(peer.source):
        expected = peer.source(IMAGES).logits
    asked: list[int] = []
    peer.source.register_forward_pre_hook(lambda module, args: asked.append(len(args[0])))
    loss, statistics = lesson(IMAGES, LABELS, torch.arange(6), None, 1.0, [0.0, 1.0])
    loss.backward()
    lesson.forget_idle_gradients_([0.0, 1.0])
    assert not changed(before, peer), "not its statistics either"
    assert all(parameter.grad is None for parameter in peer.parameters())
    assert dict(zip(lesson.statistics, statistics.tolist(), strict=True))["teacher"] == 0
    assert len(looking.shown) == 1
    assert not asked
    lesson.keeps_answers = True
    lesson(IMAGES, LABELS, torch.arange(6), None, 1.0, [0.0, 1.0])
    assert lesson.answers is not None
    assert torch.equal(lesson.answers[1], expected)


def test_other_objectives_see_the_answers_of_the_step_without_gradients() -> None:
    signals = SignalSource(toy_cnn(seed=1), frozenset(Signal) - {Signal.LABELS, Signal.IDS}, (3, 8, 8))(IMAGES)
    still = detached(signals)
    assert set(still.flat()) == set(signals.flat())
    for name, value in still.flat().items():
        assert not value.requires_grad
        assert torch.equal(value, signals.flat()[name])


def test_objectives_on_inner_signals_take_those_of_the_moving_teacher(
    tmp_path: Path, data: Dataset, teacher: nn.Module
) -> None:
    terms = [{"name": "bdkd-online"}, {"name": "fitnet", "weight": 0.1, "until_epoch": 2}, {"name": "ofa"}]
    report, _ = taught(tmp_path, data, toy_cnn(seed=1), teacher, objective="kd", objectives=terms)
    assert set(report.distill_losses) == {"bdkd-online", "ofa"}
    assert report.teacher is not None
    assert report.teacher.loss is not None
    terms[0]["until_epoch"] = 1
    early, _ = taught(tmp_path / "early", data, toy_cnn(seed=1), teacher, objective="kd", objectives=terms)
    assert early.teacher is not None
    assert early.teacher.loss is None, "in the last epoch it rested"


def test_mixed_images_and_hard_ones_are_shown_to_both(tmp_path: Path, data: Dataset, teacher: nn.Module) -> None:
    options = {"mixup": 0.4, "hard": 0.4, "label_smoothing": 0.1, "ema_decay": 0.9}
    report, _ = taught(tmp_path, data, toy_cnn(seed=1), teacher, **options)
    assert any("Images were varied" in line for line in report.decisions)
    assert report.teacher is not None


def test_a_teacher_that_never_learned_is_no_reason_to_warn(tmp_path: Path, data: Dataset) -> None:
    report, ctx = taught(tmp_path, data, toy_cnn(seed=1), toy_cnn(seed=5), teacher_lr_share=1.0, epochs=1)
    assert not any("chance is" in line for line in report.decisions)
    assert not events(ctx, "message")


def test_a_teacher_that_was_spoiled_is_warned_about(
    tmp_path: Path, data: Dataset, teacher: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = {True: 0.9, False: 0.2}
    monkeypatch.setattr(fit, "module_accuracy", lambda module, *_: scores[module is teacher])
    report, ctx = taught(tmp_path, data, toy_cnn(seed=1), teacher, epochs=1)
    [said] = [event["text"] for event in events(ctx, "message")]
    assert said in report.decisions
    assert "90.0 % of the select split before, now 20.0 %: 70.0 points were lost" in said
    assert "teacher_lr_share" in said
    assert (report.teacher.accuracy_before, report.teacher.accuracy_after) == (0.9, 0.2)  # type: ignore[union-attr]


def test_what_lies_within_the_interval_of_where_a_teacher_began_is_no_loss() -> None:
    assert what_became_of_it(0.9, 0.89, 1000)[1] is False
    assert what_became_of_it(0.9, 0.85, 1000)[1] is True
    assert what_became_of_it(0.9, 0.85, 50)[1] is False
    assert what_became_of_it(0.5, 0.9, 1000)[1] is False


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher_views": 2}, "'bdkd-online' trains the teacher along, so its answers .* teacher_views is 2"),
        ({"supervised_weight": 0}, "supervised_weight is 0: without the labels nothing would keep the teacher right"),
        (
            {"objective": "kd", "objectives": [{"name": "dml"}, {"name": "kdpp"}]},
            "'dml' trains the teacher along, but the objective 'kdpp' keeps what the teacher says",
        ),
    ],
)
def test_what_needs_a_teacher_that_stands_still_is_refused(
    tmp_path: Path, data: Dataset, teacher: nn.Module, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        taught(tmp_path, data, toy_cnn(seed=1), teacher, **options)
    assert caught.value.hint


def test_several_teachers_one_without_weights_and_one_without_labels_are_refused(
    tmp_path: Path, data: Dataset, unlabelled: Dataset, teacher: nn.Module
) -> None:
    refused = (
        (data, TeacherGroup([teacher, toy_cnn(seed=2)]), "and there are 2 teachers"),
        (data, nn.AdaptiveAvgPool2d(1), "has no weights that could be trained"),
        (unlabelled, teacher, "'bdkd-online' needs labels, and the data has none"),
    )
    for number, (images, network, message) in enumerate(refused):
        with pytest.raises(UserError, match=message):
            taught(tmp_path / str(number), images, toy_cnn(seed=1), network)
