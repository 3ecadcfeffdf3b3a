"""Intervals from dependent rounds: what they claim, they cover."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.core.rounds import inefficiency, median_interval, ratio_interval, round_medians
from edgekd.core.stats import quantile_interval

POSITIVE = st.lists(st.floats(0.1, 1e6), min_size=1, max_size=60)


def series(phi: float, n: int, rng: random.Random) -> list[float]:
    """A stationary autoregressive series around 10, with heavy-tailed steps now and then."""
    z, found = rng.gauss(0, 1), []
    for _ in range(n):
        z = phi * z + math.sqrt(1 - phi * phi) * rng.gauss(0, 1)
        found.append(10 + z)
    return found


def coverage(phi: float, n: int, runs: int = 300) -> float:
    rng = random.Random(1)
    found = (median_interval(series(phi, n, rng)) for _ in range(runs))
    return sum(interval.low <= 10 <= interval.high for interval in found) / runs


@pytest.mark.parametrize(
    ("phi", "n", "at_least"), [(0.0, 20, 0.95), (0.0, 100, 0.95), (0.5, 40, 0.94), (0.8, 100, 0.93)]
)
def test_intervals_cover_the_median_of_dependent_rounds(phi: float, n: int, at_least: float) -> None:
    assert coverage(phi, n) >= at_least


def test_an_interval_that_takes_dependent_rounds_for_independent_ones_does_not_cover() -> None:
    rng, hits = random.Random(1), 0
    for _ in range(300):
        found = quantile_interval(series(0.8, 100, rng), 0.5)
        assert found is not None
        hits += found[0] <= 10 <= found[1]
    assert hits / 300 < 0.75


def test_independent_rounds_give_the_exact_interval() -> None:
    values = [3.0, 1.0, 2.0, 1.5, 2.5, 1.2, 2.8, 1.1, 2.9, 1.4]  # they alternate, so nothing widens
    assert inefficiency(values) == 1.0
    found = median_interval(values)
    assert (found.low, found.high) == quantile_interval(values, 0.5)
    assert found.enough


def test_a_drift_is_paid_for() -> None:
    drifting = [1 + i / 100 for i in range(60)]
    assert inefficiency(drifting) > 10
    assert not median_interval(drifting).enough
    assert median_interval(drifting).low == 1.0


def test_five_rounds_are_too_few_for_an_interval() -> None:
    found = median_interval([1.0, 1.2, 0.9, 1.3, 1.1])
    assert (found.low, found.high, found.enough) == (0.9, 1.3, False)


@given(POSITIVE)
def test_the_interval_holds_the_median_and_lies_within_the_values(values: list[float]) -> None:
    found = median_interval(values)
    assert min(values) <= found.low <= found.middle <= found.high <= max(values)
    assert 1 <= inefficiency(values) <= len(values)


@given(POSITIVE, st.floats(0.01, 100))
def test_width_does_not_depend_on_the_unit(values: list[float], factor: float) -> None:
    assert median_interval([factor * v for v in values]).width == pytest.approx(median_interval(values).width, abs=1e-9)


def test_a_round_is_reduced_to_its_median() -> None:
    assert round_medians([[1, 2, 300], [5]]) == [2.0, 5.0]


def paired(ratio: float, n: int, rng: random.Random) -> tuple[list[list[float]], list[list[float]]]:
    """Rounds of two engines on a machine that drifts by a factor of two and that slows some rounds."""
    speeds = [1 + i / n + (0.5 if rng.random() < 0.2 else 0) for i in range(n)]
    mine = [[ratio * s * (1 + rng.gauss(0, 0.02)) for _ in range(5)] for s in speeds]
    return mine, [[s * (1 + rng.gauss(0, 0.02)) for _ in range(5)] for s in speeds]


def test_a_ratio_survives_a_drift_that_no_median_survives() -> None:
    mine, theirs = paired(1.05, 60, random.Random(0))
    found = ratio_interval(mine, theirs)
    assert found.low <= 1.05 <= found.high
    assert found.width < 0.02
    assert median_interval(round_medians(mine)).width > 0.2


def test_equal_engines_are_rarely_told_apart() -> None:
    rng, wrong = random.Random(2), 0
    for run in range(100):
        found = ratio_interval(*paired(1.0, 40, rng), seed=run, resamples=300)
        wrong += not found.low <= 1 <= found.high
    assert wrong <= 12


def test_ratios_that_only_drift_are_bounded_by_twice_what_was_seen() -> None:
    drifting = [[1.10 + i / 1000] for i in range(40)]
    found = ratio_interval(drifting, [[1.0]] * 40)
    assert not found.enough
    assert (found.low, found.high) == (pytest.approx(1.061), pytest.approx(1.178))


@pytest.mark.parametrize("phi", [0.0, 0.4])
def test_ratios_that_depend_on_their_neighbours_are_covered_too(phi: float) -> None:
    rng, hits = random.Random(4), 0
    for run in range(150):
        mine = [[math.exp((value - 10) / 50)] for value in series(phi, 60, rng)]
        found = ratio_interval(mine, [[1.0]] * 60, seed=run, resamples=200)
        hits += found.low <= 1 <= found.high
    assert hits / 150 >= 0.92


def test_the_bootstrap_is_reproducible_and_its_seed_matters() -> None:
    pair = paired(1.0, 30, random.Random(3))
    assert ratio_interval(*pair, seed=1) == ratio_interval(*pair, seed=1)
    assert ratio_interval(*pair, seed=1) != ratio_interval(*pair, seed=2)


def test_rounds_of_different_runs_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        ratio_interval([[1.0]] * 3, [[1.0]] * 4)
