"""TGeo-KD: its loss and its state against loops, and what it learns where the teacher is known to be wrong."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekd.core.preprocess import Preprocessing
from edgekd.data.dataset import Dataset
from edgekd.data.sources import dataset_from_arrays
from edgekd.distill.objectives.tgeo import TGeo, TGeoConfig, trilateral_state
from edgekd.testing.harness import make_context
from edgekd.testing.toys import toy_cnn
from edgekd.train.config import TrainConfig
from edgekd.train.evaluate_torch import module_accuracy
from edgekd.train.fit import distil_
from edgekd.train.objective import Signals, SignalSpec

STUDENT = torch.tensor([[1, 2, 0, -1], [0.5, -0.5, 3, 1]], dtype=torch.float64)
TEACHER = torch.tensor([[2, 3, -1, 0], [0, 1, 2, -2]], dtype=torch.float64)
LABELS = torch.tensor([1, 2])
PREPROCESSING = Preprocessing(size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)


def bound() -> TGeo:
    objective = TGeo(TGeoConfig(hidden=5))
    objective.bind(SignalSpec(classes=4), SignalSpec(classes=4))
    return objective.double()


def softmax(row: Tensor, temperature: float = 1.0) -> list[float]:
    powers = [math.exp(float(value) / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def test_the_state_is_four_distributions_and_the_squares_of_five_differences() -> None:
    s, t, g, m = (np.random.default_rng(seed).dirichlet(np.ones(3), size=2) for seed in range(4))
    found = trilateral_state(*(torch.from_numpy(x) for x in (s, t, g, m))).numpy()
    expected = [s, t, g, m, (m - s) ** 2, (g - s) ** 2, (t - s) ** 2, (t - g) ** 2, (m - g) ** 2]
    np.testing.assert_allclose(found, np.concatenate(expected, axis=1))


def test_the_terms_are_the_divergence_from_the_teacher_and_the_cross_entropy_of_the_logits() -> None:
    found = bound().terms(Signals(logits=STUDENT), Signals(logits=TEACHER), LABELS)
    for i in range(2):
        p, q = softmax(TEACHER[i], 1.5), softmax(STUDENT[i], 1.5)
        divergence = 1.5**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        assert found[i, 0].item() == pytest.approx(divergence, abs=1e-12)
        assert found[i, 1].item() == pytest.approx(-math.log(softmax(STUDENT[i])[LABELS[i]]), abs=1e-12)


def test_every_image_begins_halfway_between_the_two() -> None:
    objective = bound()
    said = Signals(logits=STUDENT), Signals(logits=TEACHER), LABELS
    assert objective(*said).item() == pytest.approx(objective.terms(*said).mean().item(), abs=1e-12)


def test_the_loss_is_the_weighted_sum_and_no_gradient_reaches_the_student_through_the_weights() -> None:
    objective = bound()
    with torch.no_grad():
        for p in objective.controller.parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1), dtype=p.dtype))
    logits = STUDENT.clone().requires_grad_()
    said = Signals(logits=logits), Signals(logits=TEACHER), LABELS
    weights = objective.weights(objective.state(*said))
    torch.testing.assert_close(weights.sum(1), torch.ones(2, dtype=torch.float64))
    assert abs(float(weights[0, 0] - weights[1, 0])) > 0.01, "each image has its own"
    assert not objective.state(*said).requires_grad
    value = objective(*said)
    expected = sum(float((weights[i] * objective.terms(*said)[i]).detach().sum()) for i in range(2)) / 2
    assert value.item() == pytest.approx(expected, abs=1e-12)
    (found,) = torch.autograd.grad(value, logits)
    fixed = (weights.detach() * objective.terms(*said)).sum(1).mean()
    torch.testing.assert_close(found, torch.autograd.grad(fixed, logits)[0])


class HalfWrong(nn.Module):
    """Knows which quarter of an image is bright; says the next class where the first pixel is white."""

    def forward(self, images: Tensor) -> Tensor:
        quarters = images.unfold(2, 4, 4).unfold(3, 4, 4).mean((1, 4, 5)).flatten(1)
        wrong = (images[:, :, 0, 0].mean(1) > 0).long()
        return 6 * F.one_hot((quarters.argmax(1) + wrong) % 4, 4).float()


def half_marked(n: int = 320) -> Dataset:
    """Four classes by their bright quarter; the first pixel of every other image of a class is white."""
    rng, labels = np.random.default_rng(0), np.arange(n) % 4
    images = rng.normal(60, 20, (n, 8, 8, 3))
    for row, label in enumerate(labels):
        y, x = divmod(int(label), 2)
        images[row, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4] += 60
    images[:, 0, 0] = np.where(np.arange(n) // 4 % 2, 255, 0)[:, None]
    return dataset_from_arrays("half marked", images.clip(0, 255).astype(np.uint8), labels.astype(np.int64), seed=0)


def trained(folder: Path, data: Dataset, **options: object) -> nn.Module:
    student = toy_cnn(seed=1)
    config = TrainConfig.parse(
        {"epochs": 12, "batch_size": 32, "lr": 0.05, "augment": {"pad_px": 0}, **options}, "test"
    )
    distil_(student, HalfWrong(), data, PREPROCESSING, config, make_context(folder))
    return student


def test_where_the_teacher_is_wrong_it_counts_for_less_and_the_student_is_the_better_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, objectives = half_marked(), []
    bind = TGeo.bind
    monkeypatch.setattr(TGeo, "bind", lambda self, *specs: (objectives.append(self), bind(self, *specs))[1])
    args = {"every": 2, "rate": 0.002}
    student = trained(tmp_path / "tgeo", data, objective="tgeo", objective_args=args)
    images = torch.from_numpy(data.train.images(range(len(data.train)), PREPROCESSING))
    images = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    assert data.train.labels is not None
    with torch.no_grad():
        said = Signals(logits=student(images)), Signals(logits=HalfWrong()(images)), torch.from_numpy(data.train.labels)
        alpha = objectives[0].weights(objectives[0].state(*said))[:, 0]
    marked = images[:, :, 0, 0].mean(1) > 0
    assert float(alpha[marked].max()) < float(alpha[~marked].min())
    assert float(alpha[marked].mean()) < 0.75 * float(alpha[~marked].mean())
    even = {"objective_args": {"temperature": 1.5}, "supervised_weight": 0.5, "distill_weight": 0.5}
    halfway = trained(tmp_path / "kd", data, objective="kd", **even)
    scores = [
        module_accuracy(network, data.test, PREPROCESSING, make_context(tmp_path).execution)
        for network in (student, halfway)
    ]
    assert scores[0] > scores[1] + 0.1
