"""How well features fit labels: against the evidence of a multivariate normal, and on features that are better."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

from edgekd.data.transfer import fit_of, logme, weights_from_scores
from edgekd.errors import UserError


def task(n: int = 40, width: int = 6, signal: float = 1.5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features of which two tell three classes apart."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    features = rng.normal(size=(n, width))
    features[:, 0] += signal * labels
    features[:, 1] += signal * (labels == 1)
    return features, labels


@pytest.mark.parametrize("width", [6, 60])
def test_the_evidence_is_the_largest_that_any_precisions_give(width: int) -> None:
    features, labels = task(width=width)

    def best(y: np.ndarray) -> float:
        def negative(logs: np.ndarray) -> float:
            a, b = np.exp(logs)
            covariance = np.eye(len(y)) / b + features @ features.T / a
            return -multivariate_normal(np.zeros(len(y)), covariance).logpdf(y) / len(y)

        return -min(minimize(negative, start, method="Nelder-Mead").fun for start in ([0.0, 0.0], [3.0, 1.0]))

    expected = np.mean([best((labels == c).astype(float)) for c in range(3)])
    assert logme(features, labels) == pytest.approx(expected, abs=2e-3)


def test_features_that_tell_classes_apart_fit_better_and_width_alone_does_not_help() -> None:
    weak, strong = task(signal=0.3, n=200), task(signal=2.0, n=200)
    assert logme(*strong) > logme(*weak)
    padded = np.concatenate([strong[0], np.random.default_rng(1).normal(size=(200, 60))], axis=1)
    assert logme(padded, strong[1]) < logme(*strong)


def test_the_interval_holds_the_score_and_shrinks_with_more_images() -> None:
    few, many = fit_of(*task(n=60)), fit_of(*task(n=960))
    for fit in (few, many):
        assert fit.low < fit.score < fit.high
    assert many.high - many.low < 0.5 * (few.high - few.low)
    assert fit_of(*task(n=60)) == few


def test_one_class_says_nothing() -> None:
    with pytest.raises(UserError, match="at least two classes"):
        logme(np.zeros((5, 2)), np.zeros(5, dtype=np.int64))


def test_shares_follow_what_scores_are_above_the_least() -> None:
    assert weights_from_scores({"a": -0.2, "b": -0.5, "c": -0.4}) == pytest.approx({"a": 0.75, "b": 0.0, "c": 0.25})
    sharp = weights_from_scores({"a": -0.2, "b": -0.5, "c": -0.4}, power=2)
    assert sharp == pytest.approx({"a": 0.9, "b": 0.0, "c": 0.1})
    assert weights_from_scores({"a": 1.0, "b": 1.0}) == {"a": 0.5, "b": 0.5}
