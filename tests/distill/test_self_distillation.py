"""The closed forms of self-distillation against plain search, and the limits that the theory gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from edgekd.distill.self_distillation import best_label_weight, ridge_smoother, self_distilled
from edgekd.errors import UserError


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kernel(n: int = 12) -> Tensor:
    x = torch.linspace(-2, 2, n, dtype=torch.float64)
    return torch.exp(-((x[:, None] - x[None, :]) ** 2))


def test_the_weight_is_what_a_search_over_a_grid_finds() -> None:
    y, g, h = drawn(1, 30, 4), drawn(2, 30, 4), drawn(3, 30, 4)
    y = 0.3 * g + 0.7 * h + 0.5 * y
    grid = np.linspace(0, 1, 2001)
    errors = [float(((alpha * g + (1 - alpha) * h - y) ** 2).sum()) for alpha in grid]
    assert best_label_weight(y, g, h) == pytest.approx(grid[int(np.argmin(errors))], abs=5e-4)


def test_the_weight_is_clipped_to_0_and_1_and_is_1_for_equal_fits() -> None:
    g, h = drawn(2, 5, 3), drawn(3, 5, 3)
    assert best_label_weight(2 * g - h, g, h) == 1.0
    assert best_label_weight(2 * h - g, g, h) == 0.0
    assert best_label_weight(drawn(1, 5, 3), g, g) == 1.0


def test_the_weight_is_the_best_one_of_the_next_round_of_kernel_ridge_regression() -> None:
    k, y = kernel(), drawn(1, 12, 2)
    fitted = self_distilled(k, y, regularisation=0.5, alpha=0.0, rounds=1)
    smoother = ridge_smoother(k, 0.5)
    target = drawn(2, 12, 2)
    best = best_label_weight(target, smoother @ y, smoother @ fitted)

    def error(alpha: float) -> float:
        found = self_distilled(k, y, regularisation=0.5, alpha=alpha, rounds=2)
        return float((found - target).square().sum())

    assert all(error(best) <= error(other) + 1e-12 for other in np.linspace(0, 1, 101))


def test_the_smoother_is_the_textbook_inverse() -> None:
    k = kernel()
    expected = k.numpy() @ np.linalg.inv(k.numpy() + 0.3 * np.eye(12))
    np.testing.assert_allclose(ridge_smoother(k, 0.3).numpy(), expected, atol=1e-10)


def test_many_rounds_are_one_fit_with_a_regularisation_over_alpha_and_without_labels_nothing_is_left() -> None:
    k, y = kernel(), drawn(1, 12, 2)
    limit = self_distilled(k, y, regularisation=0.2, alpha=0.25, rounds=400)
    torch.testing.assert_close(limit, ridge_smoother(k, 0.2 / 0.25) @ y)
    assert self_distilled(k, y, regularisation=0.2, alpha=0.0, rounds=5000).abs().max() < 0.05


def test_predictions_of_other_shapes_are_an_error() -> None:
    with pytest.raises(UserError, match=r"the shapes are \(2, 3\), \(2, 3\) and \(2, 4\)"):
        best_label_weight(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 4))
