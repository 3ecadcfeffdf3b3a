"""Augmentation that seeks disagreement: what it computes, where it goes, and that it does what it is for."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekd.core.preprocess import Preprocessing
from edgekd.data.dataset import Dataset
from edgekd.errors import UserError
from edgekd.train.hard import LEAST, OPERATIONS, START, HardAugment, disagreement
from edgekd.train.loop import Loop
from tests.train.conftest import PREPROCESSING, Train, config
from tests.train.test_resume import EVERY_STEP, finished

CPU = torch.device("cpu")


def augment(largest: float = 0.5, preprocessing: Preprocessing = PREPROCESSING) -> HardAugment:
    return HardAugment(largest, preprocessing, CPU)


def at(hard: HardAugment, **magnitudes: float) -> HardAugment:
    """All magnitudes next to nothing, but for those that are given."""
    hard.log_magnitudes.fill_(-30.0)
    for name, value in magnitudes.items():
        hard.log_magnitudes[hard.names.index(name)] = math.log(value)
    return hard


def pixels(n: int = 6, size: int = 8) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=(n, 3, size, size)).clip(-0.9, 0.9)).float()


def test_without_magnitude_images_stay_as_they_are() -> None:
    hard, images = at(augment()), pixels()
    torch.testing.assert_close(hard(images, hard.draw(6, 3)), images, rtol=0, atol=1e-5)


def test_brightness_and_contrast_are_what_they_say_in_pixels() -> None:
    hard, images = at(augment(), brightness=0.1), pixels()
    draws = torch.zeros(6, len(hard._columns), dtype=torch.float64)
    draws[:, hard._columns.index(hard.names.index("brightness"))] = 2.0
    expected = ((images * 0.5 + 0.5) + 2 * 0.1 * 0.4).clamp(0, 1)  # mean and std of the toy are 0.5
    torch.testing.assert_close(hard(images, draws) * 0.5 + 0.5, expected, rtol=0, atol=1e-5)


def test_a_shift_moves_by_a_share_of_the_size_and_a_rotation_about_the_centre() -> None:
    images = torch.zeros(1, 3, 8, 8)
    images[:, :, :, 2] = 1.0
    hard = at(augment(1.0), shift=0.625)
    draws = torch.zeros(1, len(hard._columns), dtype=torch.float64)
    draws[:, hard._columns.index(hard.names.index("shift"))] = 2.0  # 2 * 0.625 * 0.2 = 0.25 of 8 pixels to the right
    assert int(hard(images, draws)[0, 0, 4].argmax()) == 0, "the map says where a pixel comes from"
    square = pixels(1)
    turned = at(augment(1.0), rotation=0.5)
    draws = torch.zeros(1, len(turned._columns), dtype=torch.float64)
    draws[:, 0] = 90 / 15  # magnitude 0.5 of 30 degrees
    found = turned(square, draws)
    quarter = [torch.rot90(square, times, (2, 3)) for times in (1, 3)]
    assert any(torch.allclose(found, one, atol=1e-4) for one in quarter)


def test_a_drawn_batch_is_a_function_of_the_seed_and_leaves_the_generator_alone() -> None:
    hard, images = augment(), pixels()
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first, again, other = (hard(images, hard.draw(6, seed)) for seed in (5, 5, 6))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == images.shape
    assert torch.isfinite(first).all()


def test_disagreement_is_the_divergence_where_the_teacher_knows_and_nothing_where_it_does_not() -> None:
    student, teacher = torch.randn(5, 4), torch.randn(5, 4) * 4
    teacher[2] = torch.tensor([0.1, 0.0, 0.0, 0.0])
    found = disagreement(student, teacher)
    p, q = teacher.double().softmax(1).numpy(), student.double().softmax(1).numpy()
    expected = (p * np.log(p / q)).sum(1)
    expected[2] = 0.0
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)
    assert float(disagreement(teacher, teacher).abs().max()) < 1e-6


def test_the_gradient_is_that_of_the_expected_reward() -> None:
    """The score function against a finite difference: a reward that grows with the square of what is drawn."""
    hard = augment()
    draws = hard.draw(200_000, 0)
    teacher = torch.tensor([[6.0, 0.0]]).expand(200_000, 2)

    def student(magnitude: float) -> Tensor:
        """Logits whose divergence from the teacher's is a function of the drawn rotation alone."""
        amount = (magnitude * draws[:, 0]).abs().float().clamp(max=4)
        return torch.stack([6.0 - amount, torch.zeros_like(amount)], dim=1)

    here, step = 0.8, 0.02
    gradient = hard.gradient(draws, student(here), teacher)
    rewards = disagreement(student(here), teacher).double()
    up, down = (disagreement(student(here * math.exp(s)), teacher).double().mean() for s in (step, -step))
    slope = (up - down) / (2 * step) / rewards.std(unbiased=False)
    assert float(gradient[0]) == pytest.approx(float(slope), rel=0.05)
    assert float(gradient[1:].abs().max()) < 0.02, "what has no influence does not move"


def test_magnitudes_stay_within_their_limits_and_grey_images_have_no_saturation() -> None:
    hard = augment(0.4)
    assert list(hard.magnitudes.values()) == pytest.approx([START * 0.4] * 7)
    for _ in range(200):
        hard.step_(torch.tensor([1.0] + [-1.0] * 6, dtype=torch.float64))
    assert hard.magnitudes["rotation"] == pytest.approx(0.4)
    assert hard.magnitudes["shear"] == pytest.approx(LEAST * 0.4)
    grey = augment(preprocessing=Preprocessing(size=(8, 8), mean=(0.5,), std=(0.5,)))
    assert grey.names == OPERATIONS[:-1]
    assert grey(torch.zeros(2, 1, 8, 8), grey.draw(2, 0)).shape == (2, 1, 8, 8)
    assert hard.said().startswith("Images were varied as far as the student disagreed with its teacher: rotation 0.40,")


class Blind(nn.Module):
    """Knows the mean of an image and nothing else; two of opposite weights differ the more, the farther it is off."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, images: Tensor) -> Tensor:
        mean = images.mean(dim=(1, 2, 3))
        return torch.stack([self.weight * mean, torch.zeros_like(mean)], dim=1)


def test_it_learns_which_operations_make_student_and_teacher_disagree() -> None:
    hard, teacher, student = augment(), Blind(8.0), Blind(-8.0)
    images = torch.from_numpy(np.random.default_rng(0).normal(0.0, 0.05, (64, 3, 8, 8))).float()
    fixed, before = hard.draw(64, 999), hard(images, hard.draw(64, 999))
    for step in range(100):
        draws = hard.draw(64, step)
        shown = hard(images, draws)
        hard.step_(hard.gradient(draws, student(shown), teacher(shown)))
    found = hard.magnitudes
    assert found["brightness"] > 2 * max(value for name, value in found.items() if name != "brightness"), found
    after = hard(images, fixed)
    assert disagreement(student(after), teacher(after)).mean() > disagreement(student(before), teacher(before)).mean()


def test_training_raises_the_disagreement_that_it_trains_on(
    train: Train, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"epochs": 10, "objective": "kd", "augment": {}, "lr": 0.01}
    _, plain, _ = train(folder="plain", **options)
    _, varied, _ = train(folder="hard", hard=0.6, **options)
    assert plain.distill_loss is not None
    assert varied.distill_loss is not None
    assert varied.distill_loss > plain.distill_loss
    assert varied.decisions[-1].startswith("Images were varied") or any("were varied" in x for x in varied.decisions)
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_learn_hardness", lambda self, draws, answers: None)
        _, frozen, _ = train(folder="frozen", hard=0.6, **options)
    assert varied.distill_loss != frozen.distill_loss


def test_an_interrupted_training_varies_as_it_would_have(tmp_path: Path, data: Dataset, teacher: nn.Module) -> None:
    expected, _ = finished(tmp_path / "whole", data, teacher, [], EVERY_STEP, hard=0.5)
    got, _ = finished(tmp_path / "cut", data, teacher, [7], EVERY_STEP, hard=0.5)
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_it_needs_a_teacher_that_is_asked_live(train: Train) -> None:
    with pytest.raises(UserError, match="teacher_views must be 0"):
        config(hard=0.5, teacher_views=2)
    with pytest.raises(UserError, match="there is no teacher to ask"):
        train(taught=False, hard=0.5)
