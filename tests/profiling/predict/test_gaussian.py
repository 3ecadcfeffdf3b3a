"""The arithmetic of the transfer model against slower forms of itself."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from edgekd.profiling.predict.gaussian import (
    LEVEL,
    Observed,
    most_likely_setting,
    posterior,
    rough_log_evidences,
)

SETTING = np.log(np.array([0.5, 0.02, 0.01]))


@pytest.fixture(scope="module")
def observed() -> Observed:
    rng = np.random.default_rng(0)
    blocks = [rng.standard_normal((30, 2)), rng.standard_normal((30, 5))]
    values = blocks[0] @ np.array([0.4, -0.7]) + 0.1 * rng.standard_normal(30)
    return Observed(blocks=blocks, values=values, rounding=np.full(30, 1e-4))


def covariance(setting: np.ndarray, observed: Observed) -> np.ndarray:
    first, second, noise = np.exp(setting)
    signal = (
        LEVEL + first * observed.blocks[0] @ observed.blocks[0].T + second * observed.blocks[1] @ observed.blocks[1].T
    )
    return np.asarray(signal + np.diag(noise + observed.rounding))


def test_evidences_of_many_settings_are_those_of_a_multivariate_t(observed: Observed) -> None:
    settings = np.array([SETTING, SETTING + 1, SETTING - [2, 0, 1]])
    found = rough_log_evidences(settings, observed, observed.kernels())
    for setting, value in zip(settings, found, strict=True):
        spread = covariance(setting, observed)
        misfit = observed.values @ np.linalg.solve(spread, observed.values)
        expected = -0.5 * np.linalg.slogdet(spread)[1] - 0.5 * (6 + 30) * np.log1p(misfit / 6)
        assert value == pytest.approx(expected, rel=1e-9)


def test_the_most_likely_setting_is_likelier_than_those_beside_it(observed: Observed) -> None:
    best = most_likely_setting(observed)
    typical = np.log([0.03, 0.03, 0.002])

    def density(setting: np.ndarray) -> float:
        prior = -0.5 * float(np.sum(((setting - typical) / 3.0) ** 2))
        return prior + float(multivariate_normal(np.zeros(30), covariance(setting, observed)).logpdf(observed.values))

    assert np.exp(best[0]) > 10 * np.exp(best[1]), "only the first block matters"
    for place in range(3):
        for step in (-0.7, 0.7):
            beside = best.copy()
            beside[place] += step
            assert density(beside) < density(best) + 0.05


def test_left_out_values_are_those_of_fits_without_them(observed: Observed) -> None:
    whole = posterior(SETTING, observed, observed.kernels())
    means, _ = whole.left_out(observed)
    rest = np.arange(30) != 4
    spread = covariance(SETTING, observed)
    spread[np.diag_indices(30)] += np.exp(SETTING[-1]) * (1 / whole.weights - 1)
    expected = spread[4, rest] @ np.linalg.solve(spread[np.ix_(rest, rest)], observed.values[rest])
    assert means[4] == pytest.approx(expected, rel=1e-9)
