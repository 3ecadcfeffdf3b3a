"""Choosing by what a model says: against brute force, definitions and scikit-learn."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy
from sklearn.metrics import roc_auc_score

from edgekd.data.choice import confident_and_balanced, entropies, k_centres, probabilities, separation
from edgekd.errors import UserError


def test_probabilities_and_entropies_are_those_of_scipy_for_large_logits_too() -> None:
    logits = np.random.default_rng(0).normal(0, 200, (50, 7)).astype(np.float32)
    p = probabilities(logits)
    np.testing.assert_allclose(p, softmax(logits.astype(np.float64), axis=1))
    np.testing.assert_allclose(entropies(p), entropy(p, axis=1), atol=1e-12)


def test_the_surest_of_each_class_are_taken() -> None:
    p = probabilities(np.random.default_rng(1).normal(0, 2, (200, 4)))
    rows, classes = confident_and_balanced(p, threshold=0.6, per_class=5)
    expected = []
    for label in range(4):
        sure = [(-p[row, label], row) for row in range(200) if p[row].argmax() == label and p[row].max() >= 0.6]
        expected += [(row, label) for _, row in sorted(sure)[:5]]
    assert list(zip(rows.tolist(), classes.tolist(), strict=True)) == sorted(expected)
    assert len(rows) == 20
    every, _ = confident_and_balanced(p, threshold=0.6)
    assert every.tolist() == np.flatnonzero(p.max(axis=1) >= 0.6).tolist()
    assert len(confident_and_balanced(p, threshold=1.1)[0]) == 0


def test_separation_is_the_area_under_the_roc_curve() -> None:
    rng = np.random.default_rng(2)
    values, reference = rng.integers(0, 9, 80) / 8, rng.integers(2, 12, 60) / 8
    truth = np.r_[np.ones(80), np.zeros(60)]
    assert separation(values, reference) == pytest.approx(roc_auc_score(truth, np.r_[values, reference]))
    assert separation(values, values) == pytest.approx(0.5)
    assert separation(values + 10, values) == 1.0


def test_each_centre_is_the_farthest_point_from_all_before_it() -> None:
    points = np.random.default_rng(3).normal(size=(60, 3))
    given = points[[4, 9]]
    order, far = k_centres(points, 12, given=given)
    chosen = list(given)
    for row, distance in zip(order, far, strict=True):
        to_all = np.min([np.linalg.norm(points - centre, axis=1) for centre in chosen], axis=0)
        assert to_all[row] == pytest.approx(to_all.max())
        assert distance == pytest.approx(to_all[row])
        chosen.append(points[row])
    assert (np.diff(far) <= 1e-9).all()


def test_the_greedy_choice_covers_within_twice_the_best_possible() -> None:
    points = np.random.default_rng(4).normal(size=(14, 2))

    def radius(centres: np.ndarray) -> float:
        return float(np.linalg.norm(points[:, None] - points[centres][None], axis=2).min(axis=1).max())

    best = min(radius(np.array(choice)) for choice in itertools.combinations(range(14), 3))
    assert radius(k_centres(points, 3)[0]) <= 2 * best


def test_without_given_points_the_first_is_the_most_central_and_equal_points_are_chosen_once_each() -> None:
    points = np.array([[0.0], [0.0], [1.0], [2.0], [9.0]])
    order, far = k_centres(points, 5)
    assert order[0] == 3, "nearest to the mean of 2.4"
    assert np.isinf(far[0])
    assert sorted(order.tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("count", [0, 6])
def test_a_count_that_cannot_be_is_refused(count: int) -> None:
    with pytest.raises(UserError, match=f"choose 1 to 5 of 5 images, got {count}"):
        k_centres(np.zeros((5, 2)), count)
