"""Trainings as a whole: what they reach, what they report, and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgekd.core.stage import Context, Execution
from edgekd.data.dataset import Dataset
from edgekd.distill.objectives.at import AT
from edgekd.errors import BuildFailed, DeviceUnavailable, UserError
from edgekd.testing.harness import make_context
from edgekd.testing.toys import toy_cnn
from edgekd.train.checkpoint import Rhythm
from edgekd.train.evaluate_torch import module_accuracy, module_agreement
from edgekd.train.fit import distil_
from edgekd.train.objective import OBJECTIVES
from tests.train.conftest import PREPROCESSING, Train, config, events


def test_supervised_training_learns_the_toy_data(train: Train, data: Dataset) -> None:
    student, report, _ = train(taught=False, epochs=12)
    assert module_accuracy(student, data.select, PREPROCESSING) >= 0.75
    assert report.train_accuracy > 0.9
    assert report.distill_loss is None
    assert report.decisions[0] == "Trained with labels alone: there is no teacher."
    assert report.steps == 12 * 4
    assert not student.training


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_a_student_learns_with_every_objective(train: Train, data: Dataset, objective: str) -> None:
    student, report, _ = train(objective=objective, epochs=20, grad_clip=5.0)
    assert module_accuracy(student, data.train, PREPROCESSING) >= 0.75
    assert report.distill_loss is not None


def test_without_labels_the_student_learns_to_agree_with_its_teacher(
    train: Train, unlabelled: Dataset, teacher: nn.Module
) -> None:
    student, report, _ = train(on=unlabelled, epochs=12)
    assert module_agreement(student, teacher, unlabelled.train, PREPROCESSING) > 0.8
    assert report.supervised_loss is None
    assert report.decisions[0] == "Distilled without labels: 1 * kd."


def test_an_objective_that_needs_labels_names_those_that_do_not(train: Train, unlabelled: Dataset) -> None:
    with pytest.raises(UserError, match="'dkd' needs labels") as caught:
        train(on=unlabelled, objective="dkd")
    assert str(caught.value.hint).startswith("objectives that do not need labels: kd, dist, diswot")


def test_a_live_teacher_that_guesses_is_warned_about_and_one_that_knows_is_not(
    tmp_path: Path, data: Dataset, train: Train
) -> None:
    def warned(ctx: Context) -> list[str]:
        return [event["text"] for event in events(ctx, "message") if "chance is 25 %" in event["text"]]

    _, taught, quiet = train()
    assert not any("chance is" in line for line in taught.decisions)
    assert not warned(quiet)
    ctx = make_context(tmp_path / "untrained")
    report = distil_(toy_cnn(seed=1), toy_cnn(seed=5), data, PREPROCESSING, config(epochs=1), ctx)
    [doubt] = [line for line in report.decisions if "chance is 25 %" in line]
    assert warned(ctx) == [doubt]


def test_neither_teacher_nor_labels_is_an_error(train: Train, unlabelled: Dataset) -> None:
    with pytest.raises(UserError, match="nothing to learn from"):
        train(taught=False, on=unlabelled)


def test_a_diverging_training_names_epoch_step_and_rate_and_says_what_to_do(train: Train) -> None:
    with pytest.raises(BuildFailed, match=r"in epoch \d of 3, step \d of 4, at learning rate 1e\+18") as caught:
        train(taught=False, lr=1e18, schedule="step")
    assert caught.value.hint is not None
    assert "lower lr" in caught.value.hint


def test_a_diverging_term_is_named_and_the_last_good_checkpoint_kept(
    tmp_path: Path, data: Dataset, teacher: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def explode(self: AT, student: object, taught: object, labels: object) -> Tensor:
        nonlocal calls
        calls += 1
        return student.logits.sum() * (float("inf") if calls > 6 else 1e-9)  # type: ignore[attr-defined]

    monkeypatch.setattr(AT, "forward", explode)
    chosen = config(objectives=[{"name": "kd", "weight": 1}, {"name": "at", "weight": 2}])
    ctx = make_context(tmp_path)
    with pytest.raises(
        BuildFailed, match=r"in epoch 2 of 3, step 3 of 4.*Not finite: the term 'at'; finite: "
    ) as caught:
        distil_(toy_cnn(), teacher, data, PREPROCESSING, chosen, ctx, rhythm=Rhythm(epoch_s=0))
    assert "lower the weight of the term 'at'" in str(caught.value.hint)
    kept = ctx.scratch / "training.ckpt"
    assert str(kept) in caught.value.message
    state = torch.load(kept, weights_only=True)
    assert state["step"] == 4
    assert all(torch.isfinite(value).all() for value in state["lesson"].values())


def test_several_objectives_are_each_reported_and_sum_to_the_loss(train: Train) -> None:
    terms = [{"name": "kd", "weight": 0.5}, {"name": "at", "weight": 10, "until_epoch": 1}, {"name": "sp", "weight": 3}]
    _, report, ctx = train(epochs=2, objectives=terms, supervised_weight=0.2)
    assert set(report.distill_losses) == {"kd", "sp"}
    assert report.supervised_loss is not None
    expected = 0.2 * report.supervised_loss + 0.5 * report.distill_losses["kd"] + 3 * report.distill_losses["sp"]
    assert report.loss == pytest.approx(expected, rel=1e-5)
    last = events(ctx, "progress")[-1]
    assert (last["loss_kd"], last["loss_at"]) == (pytest.approx(report.distill_losses["kd"]), 0)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(train: Train) -> None:
    first, second, other = (
        train(folder=name, seed=seed)[0].state_dict() for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_the_callers_random_state_threads_and_teacher_are_left_alone(train: Train, teacher: nn.Module) -> None:
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    train()
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(p.is_contiguous() and p.grad is None for p in teacher.parameters())


def test_channels_last_changes_the_speed_and_not_the_result(train: Train) -> None:
    one, _, _ = train(folder="a", channels_last=True)
    other, _, _ = train(folder="b", channels_last=False)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-3, atol=1e-4)
        assert value.is_contiguous()


def test_progress_counts_steps_and_gives_loss_accuracy_and_speed(train: Train) -> None:
    _, report, ctx = train(epochs=3)
    progress = events(ctx, "progress")
    assert [event["epoch"] for event in progress if event["done"] % 4 == 0] == [1, 2, 3]
    last = progress[-1]
    assert (last["task"], last["done"], last["total"], last["epochs"]) == ("distil", 12, 12, 3)
    assert last["loss"] == pytest.approx(report.loss)
    assert last["accuracy"] == pytest.approx(report.train_accuracy)
    assert last["images_per_s"] > 0


def test_a_student_with_another_number_of_classes_than_its_teacher_is_an_error(train: Train) -> None:
    with pytest.raises(UserError, match="The student has 5 classes and the teacher 4"):
        train(student=toy_cnn(classes=5))


def test_labels_beyond_the_students_classes_are_an_error(train: Train) -> None:
    with pytest.raises(UserError, match="labels up to 3, but the student has 2 outputs"):
        train(student=toy_cnn(classes=2), taught=False)


def test_a_student_without_trainable_parameters_is_an_error(train: Train) -> None:
    with pytest.raises(UserError, match="no trainable parameter"):
        train(student=toy_cnn().requires_grad_(False))


def test_a_gpu_that_is_not_there_is_an_error(tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ctx = make_context(tmp_path)
    object.__setattr__(ctx, "execution", Execution(device="cuda"))
    with pytest.raises(DeviceUnavailable, match="finds no GPU"):
        distil_(toy_cnn(), None, data, PREPROCESSING, config(), ctx)


def test_too_few_images_for_a_batch_are_an_error(tmp_path: Path, data: Dataset) -> None:
    tiny = replace(data, train=data.train.subset([0]))
    with pytest.raises(UserError, match="from 1 training images are too small"):
        distil_(toy_cnn(), None, tiny, PREPROCESSING, config(), make_context(tmp_path))


def test_an_odd_number_of_images_leaves_no_batch_of_one(tmp_path: Path, data: Dataset) -> None:
    nine = replace(data, train=data.train.subset(range(9)))
    report = distil_(toy_cnn(), None, nine, PREPROCESSING, config(batch_size=2, epochs=1), make_context(tmp_path))
    assert report.steps == 4


@pytest.mark.parametrize(
    "options",
    [
        {"label_smoothing": 0.2},
        {"grad_clip": 0.01},
        {"distill_warmup_epochs": 3},
        {"objective_args": {"temperature": 2.0}},
        {"supervised_weight": 0.5},
        {"distill_weight": 0.5},
        {"objectives": ({"name": "kd"}, {"name": "dist"})},
        {"momentum": 0.5},
        {"nesterov": False},
        {"weight_decay": 0.05},
        {"optimizer": "adamw"},
        {"schedule": "step"},
        {"warmup_epochs": 1},
        {"teacher_views": 1},
        {"ema_decay": 0.5},
        {"augment": {}},
        {"batch_size": 32},
        {"hard": 0.5},
    ],
    ids=lambda options: next(iter(options)),
)
def test_every_option_has_an_effect(options: dict[str, Any], usual: dict[str, Tensor], train: Train) -> None:
    changed = train(**options)[0].state_dict()
    assert not all(torch.equal(usual[name], changed[name]) for name in usual)


@pytest.fixture(scope="module")
def usual(data: Dataset, teacher: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Final weights with the test's usual options."""
    student = toy_cnn(seed=1)
    distil_(student, teacher, data, PREPROCESSING, config(), make_context(tmp_path_factory.mktemp("usual")))
    return student.state_dict()


def test_a_clipped_gradient_moves_the_weights_no_further_than_asked(train: Train) -> None:
    before = toy_cnn(seed=1)
    after, report, _ = train(grad_clip=0.01, momentum=0, nesterov=False, weight_decay=0, schedule="step", lr=0.1)
    pairs = zip(before.parameters(), after.parameters(), strict=True)
    moved = torch.cat([(p - q).detach().flatten() for p, q in pairs]).norm().item()
    assert 0 < moved <= report.steps * 0.1 * 0.01


def test_what_is_minimised_is_the_weighted_sum(train: Train) -> None:
    _, report, _ = train(epochs=1, supervised_weight=0.3, distill_weight=0.6, distill_warmup_epochs=2)
    assert report.supervised_loss is not None
    assert report.distill_loss is not None
    assert report.loss == pytest.approx(0.3 * report.supervised_loss + 0.6 * 0.5 * report.distill_loss, rel=1e-5)
