"""Batches in micro-batches: the gradient is that of the whole batch, and everything else goes on as it did."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekd.data.dataset import UNLABELLED, Dataset
from edgekd.errors import UserError
from edgekd.testing.harness import make_context
from edgekd.testing.toys import toy_cnn
from edgekd.train.batches import TrainBatch
from edgekd.train.fit import distil_
from tests.train.conftest import PREPROCESSING, Train, config
from tests.train.test_resume import EVERY_STEP, STEPS, finished


def plain_cnn() -> nn.Module:
    """A small network without BatchNorm: what it says of an image does not depend on the batch."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4)
    )


def few_labels(data: Dataset) -> Dataset:
    """A label on every fifth image: not every micro-batch has as many of them."""
    assert data.train.labels is not None
    labels = np.where(np.arange(len(data.train)) % 5, UNLABELLED, data.train.labels)
    return replace(data, train=data.train.labelled(labels))


SAME: list[dict[str, Any]] = [
    {"objective": "kd", "teacher_views": 0},
    {"objective": "kd", "teacher_views": 2, "epochs": 6},
    {"objective": "kd", "grad_clip": 0.05, "label_smoothing": 0.1},
    {"objective": "pskd"},
    {"objectives": [{"name": "kd"}, {"name": "at", "weight": 2, "from_epoch": 1, "until_epoch": 2}]},
    {"objective": "kd", "hard": 0.5},
    {"objective": "kd", "mixup": 0.3},
    {"objective": "kd", "ema_decay": 0.9},
]


def assert_alike(cut: nn.Module, whole: nn.Module) -> None:
    for name, value in cut.state_dict().items():
        torch.testing.assert_close(value, whole.state_dict()[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", SAME, ids=str)
@pytest.mark.parametrize("accumulate", [3, 8])
def test_micro_batches_end_with_the_weights_of_the_whole_batch(
    train: Train, options: dict[str, Any], accumulate: int
) -> None:
    whole, expected, _ = train(student=plain_cnn(), folder="whole", **options)
    cut, report, _ = train(student=plain_cnn(), folder="cut", accumulate=accumulate, **options)
    assert_alike(cut, whole)
    assert report.steps == expected.steps
    assert report.loss == pytest.approx(expected.loss, rel=1e-4)
    assert report.train_accuracy == pytest.approx(expected.train_accuracy)
    assert report.decisions == expected.decisions


def test_labels_that_few_images_have_count_as_in_the_whole_batch(train: Train, data: Dataset) -> None:
    whole, expected, _ = train(student=plain_cnn(), folder="whole", on=few_labels(data))
    cut, report, _ = train(student=plain_cnn(), folder="cut", on=few_labels(data), accumulate=8)
    assert_alike(cut, whole)
    assert report.supervised_loss == pytest.approx(expected.supervised_loss, rel=1e-4)
    assert report.loss == pytest.approx(expected.loss, rel=1e-4)


def test_a_teacher_that_is_trained_along_is_moved_by_the_whole_batch_too(tmp_path: Path, data: Dataset) -> None:
    found = []
    for accumulate in (1, 4):
        student, options = plain_cnn(), config(objective="dml", grad_clip=0.5, lr=0.1, accumulate=accumulate)
        teacher = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 4))
        torch.manual_seed(4)
        for parameter in teacher.parameters():
            nn.init.normal_(parameter, std=0.3)
        report = distil_(student, teacher, data, PREPROCESSING, options, make_context(tmp_path / str(accumulate)))
        assert report.teacher is not None
        found.append((student, report.loss, report.teacher))
    (whole, loss, taught), (cut, cut_loss, cut_taught) = found
    assert_alike(cut, whole)
    assert cut_loss == pytest.approx(loss, rel=1e-4)
    assert cut_taught.loss == pytest.approx(taught.loss, rel=1e-4)


RESUMED: list[dict[str, Any]] = [
    {"objective": "kd", "teacher_views": 2, "accumulate": 3},
    {"objective": "taid", "grad_clip": 1.0, "ema_decay": 0.9, "accumulate": 2},
]


@pytest.mark.parametrize("options", RESUMED, ids=["cached teacher", "state that moves with each pass"])
def test_an_interruption_between_micro_batches_changes_nothing(
    tmp_path: Path, data: Dataset, teacher: nn.Module, options: dict[str, Any]
) -> None:
    expected, _ = finished(tmp_path / "whole", data, teacher, [], EVERY_STEP, **options)
    passes = options["accumulate"]
    for step in (1, 8, STEPS - 1):
        stop = step * passes + 1
        got, report = finished(tmp_path / f"stop{step}", data, teacher, [stop], EVERY_STEP, **options)
        assert report.resumed_at_step == step
        assert all(torch.equal(expected[name], got[name]) for name in expected), f"stopped in step {step}"


def test_the_student_never_sees_more_than_a_micro_batch(train: Train) -> None:
    sizes: set[int] = set()

    def count(module: nn.Module, args: tuple[Tensor]) -> None:
        if module.training:
            sizes.add(len(args[0]))

    student = plain_cnn()
    student.register_forward_pre_hook(count)
    train(student=student, batch_size=24, accumulate=4)  # 64 images: batches of 21 and 22
    assert sizes == {5, 6}


def test_a_batch_is_cut_into_parts_that_differ_by_at_most_one() -> None:
    shares = torch.rand(11, 3)
    batch = TrainBatch(torch.arange(11.0).reshape(11, 1, 1, 1), shares, np.arange(11))
    parts = batch.parts(3)
    assert [len(part.images) for part in parts] == [4, 4, 3]
    assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
    assert torch.equal(torch.cat([part.labels for part in parts if part.labels is not None]), shares)
    assert np.concatenate([part.ids for part in parts]).tolist() == list(range(11))
    assert batch.parts(1) == [batch]


def test_micro_batches_of_one_image_are_an_error(tmp_path: Path, data: Dataset) -> None:
    with pytest.raises(UserError, match="micro-batches of less than two images of a batch_size of 16"):
        config(accumulate=9)
    five = replace(data, train=data.train.subset(range(5)))
    with pytest.raises(UserError, match=r"1 process\(es\) and 4 micro-batches in each: each needs at least 8"):
        distil_(toy_cnn(), None, five, PREPROCESSING, config(accumulate=4), make_context(tmp_path))


def test_an_objective_that_looks_back_at_whole_batches_is_refused(train: Train) -> None:
    with pytest.raises(UserError, match=r"'tgeo' learns how to weigh its terms .* accumulate=2 cuts batches"):
        train(objective="tgeo", accumulate=2)


def test_bfloat16_learns_in_micro_batches_too(train: Train) -> None:
    _, report, _ = train(accumulate=2, precision="bf16-mixed", epochs=2)
    assert report.train_accuracy > 0.25
