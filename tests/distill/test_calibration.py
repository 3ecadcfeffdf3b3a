"""The calibrating temperature against a grid, and what it does to the calibration error."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from edgekd.distill.calibration import calibrating_temperature
from edgekd.errors import UserError
from edgekd.tasks.classification import calibration_error


def drawn(scale: float, n: int = 4000) -> tuple[Tensor, Tensor]:
    """Logits, and labels drawn from softmax(logits / scale): calibrated at that temperature."""
    rng = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(n, 5, generator=rng, dtype=torch.float64)
    return logits, torch.multinomial(torch.softmax(logits / scale, 1), 1, generator=rng)[:, 0]


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_temperature_is_the_one_that_the_labels_were_drawn_at(scale: float) -> None:
    assert calibrating_temperature(*drawn(scale)) == pytest.approx(scale, rel=0.1)


def test_no_temperature_of_a_grid_has_a_lower_cross_entropy() -> None:
    logits, labels = drawn(2.0, n=500)
    scores, y = logits.numpy(), labels.numpy()

    def loss(temperature: float) -> float:
        rows = scores / temperature
        return float(np.mean([np.log(np.exp(row).sum()) - row[k] for row, k in zip(rows, y, strict=True)]))

    found = calibrating_temperature(logits, labels)
    assert all(loss(found) <= loss(other) for other in np.geomspace(0.2, 19, 40))
    assert loss(found) < loss(found * 1.05)
    assert loss(found) < loss(found / 1.05)


def test_a_teacher_that_is_always_right_is_sharpened_to_the_limit() -> None:
    logits = torch.eye(3)
    assert calibrating_temperature(logits, torch.arange(3)) == pytest.approx(0.05, rel=1e-6)


def test_the_temperature_lowers_the_calibration_error() -> None:
    logits, labels = drawn(3.0)
    scaled = logits / calibrating_temperature(logits, labels)
    before, after = (calibration_error(x.numpy(), labels.numpy()) for x in (logits, scaled))
    assert before > 0.2
    assert after < 0.05


def test_labels_that_do_not_belong_to_the_logits_are_an_error() -> None:
    with pytest.raises(UserError, match="got 2 rows of logits and labels of shape"):
        calibrating_temperature(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64))
