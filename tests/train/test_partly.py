"""Trainings on images of which some have no label: what counts, what is reported, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from edgekd.data.dataset import UNLABELLED, Dataset
from edgekd.errors import UserError
from edgekd.testing.toy_data import toy_dataset
from edgekd.testing.toys import toy_cnn
from edgekd.train import lesson as lesson_module
from edgekd.train.config import TrainConfig
from edgekd.train.evaluate_torch import module_accuracy
from edgekd.train.lesson import Lesson
from edgekd.train.loss_plan import plan_loss
from edgekd.train.signals import SignalSource
from tests.train.conftest import PREPROCESSING, Train

IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([1, UNLABELLED, 0, 3, UNLABELLED, UNLABELLED])
KNOWN = LABELS != UNLABELLED


def partly(own: int = 16) -> Dataset:
    """The first images of the toy data with their labels, the rest of its training split without."""
    data = toy_dataset(n=80)
    assert data.train.labels is not None
    labels = np.where(np.arange(len(data.train)) < own, data.train.labels, UNLABELLED)
    return replace(data, train=data.train.labelled(labels))


def taught(*, smoothing: float = 0.0, joint: bool = False) -> Lesson:
    source = SignalSource(toy_cnn(seed=1), frozenset(), (3, 8, 8))
    return Lesson(source, (), smoothing, joint=joint, partly=True).eval()


def step(lesson: Lesson, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float], list[Tensor]]:
    """Loss, statistics per image, and gradients of the student."""
    loss, sums = lesson(images, labels, torch.arange(len(images)), None, 1.0, [])
    gradients = torch.autograd.grad(loss, list(lesson.student.parameters()))
    return loss.detach(), dict(zip(lesson.statistics, (sums / len(images)).tolist(), strict=True)), list(gradients)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_cross_entropy_is_the_mean_over_the_images_with_a_label(smoothing: float) -> None:
    lesson = taught(smoothing=smoothing)
    loss, found, gradients = step(lesson, IMAGES, LABELS)
    logits = toy_cnn(seed=1).eval()(IMAGES[KNOWN]).double()
    expected = F.cross_entropy(logits, LABELS[KNOWN], label_smoothing=smoothing)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    _, _, alone = step(lesson, IMAGES[KNOWN], LABELS[KNOWN])
    for gradient, other in zip(gradients, alone, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-7)
    assert found["labelled"] == pytest.approx(3 / 6)
    assert found["supervised"] / found["labelled"] == pytest.approx(expected.item(), rel=1e-6)
    hits = (logits.argmax(1) == LABELS[KNOWN]).double().mean().item()
    assert found["hits"] / found["labelled"] == pytest.approx(hits)


def test_a_batch_without_any_label_moves_nothing() -> None:
    loss, found, gradients = step(taught(smoothing=0.1), IMAGES, torch.full((6,), UNLABELLED))
    assert loss.item() == 0
    assert (found["labelled"], found["supervised"], found["hits"], found["images"]) == (0, 0, 0, 1)
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)


def test_shares_of_mixed_images_count_for_what_is_known_of_them() -> None:
    shares = torch.zeros(6, 4)
    shares[0, 1], shares[2, 0], shares[2, 3], shares[3, 2] = 0.3, 0.6, 0.4, 0.7
    loss, found, _ = step(taught(), IMAGES, shares)
    log_p = toy_cnn(seed=1).eval()(IMAGES).double().log_softmax(1)
    assert loss.item() == pytest.approx(-(shares * log_p).sum().item() / 2, rel=1e-6)
    assert found["labelled"] == pytest.approx(2 / 6)


def test_of_several_processes_each_label_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _, gradients = step(taught(), IMAGES, LABELS)
    halves = [slice(0, 4), slice(4, 6)]  # of the second one no image has a label
    monkeypatch.setattr(lesson_module, "mean_over_processes", lambda known: torch.full_like(known, 3 / 2))
    parts = [step(taught(joint=True), IMAGES[half], LABELS[half]) for half in halves]
    assert sum(loss.item() for loss, _, _ in parts) / 2 == pytest.approx(whole.item(), rel=1e-6)
    for gradient, *shares in zip(gradients, *(found for _, _, found in parts), strict=True):
        torch.testing.assert_close(sum(shares) / 2, gradient, rtol=1e-4, atol=1e-7)


def test_a_student_learns_from_few_labels_and_from_its_teachers_word_on_the_rest(train: Train) -> None:
    data = partly()
    student, report, _ = train(on=data, epochs=12, supervised_weight=0.5)
    assert module_accuracy(student, toy_dataset(n=80).train, PREPROCESSING) >= 0.75
    assert report.supervised_loss is not None
    assert report.train_accuracy >= 0.75, "of 16 images with a label; among 64 it could not be above a quarter"


def test_images_without_a_label_do_not_reach_the_cross_entropy(train: Train) -> None:
    data = partly()
    labels = data.train.labels
    assert labels is not None
    with_labels, _, _ = train(on=toy_dataset(n=80), taught=False, folder="all")
    without, report, _ = train(on=data, taught=False, folder="some")
    assert not torch.equal(with_labels.state_dict()["stem.0.weight"], without.state_dict()["stem.0.weight"])
    assert report.supervised_loss is not None
    assert np.isfinite(report.supervised_loss)


@pytest.mark.parametrize("options", [{"mixup": 0.5}, {"label_smoothing": 0.1}, {"hard": 0.3}, {"teacher_views": 2}])
def test_partly_labelled_images_go_with_the_other_options(options: dict[str, Any], train: Train) -> None:
    _, report, _ = train(on=partly(), epochs=2, **options)
    assert report.supervised_loss is not None
    assert np.isfinite(report.loss)
    assert 0 <= report.train_accuracy <= 1


def test_an_objective_that_needs_every_label_names_those_that_do_not(train: Train) -> None:
    with pytest.raises(UserError, match="'dkd' needs the label of every image") as caught:
        train(on=partly(), objective="dkd")
    assert str(caught.value.hint).startswith("set labels=teacher at the gather node, or choose one that does not: kd,")
    assert "lelp" in str(caught.value.hint)


def test_whether_some_labels_are_missing_is_no_matter_where_there_are_none() -> None:
    plan = plan_loss(TrainConfig(), teachers=1, labelled=False, partly=True)
    assert plan.supervised == 0
