"""Order statistics: quantiles, their intervals, thinning."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.core.stats import paired_loss_interval, quantile, quantile_interval, thinned

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60)


@given(VALUES, st.floats(0, 1))
def test_a_quantile_is_what_numpy_says(values: list[float], q: float) -> None:
    assert quantile(values, q) == pytest.approx(float(np.quantile(values, q)), rel=1e-9, abs=1e-6)


@pytest.mark.parametrize(("q", "fewest"), [(0.5, 6), (0.9, 36), (0.99, 368)])
def test_an_interval_needs_enough_values(q: float, fewest: int) -> None:
    assert quantile_interval(range(fewest - 1), q) is None
    assert quantile_interval(range(fewest), q) is not None


def test_the_interval_of_a_median_of_ten_values_has_the_ranks_of_the_tables() -> None:
    assert quantile_interval(range(1, 11), 0.5) == (2, 9)
    assert quantile_interval(range(1, 21), 0.5) == (6, 15)


@pytest.mark.parametrize(("q", "n"), [(0.5, 20), (0.9, 60), (0.99, 500)])
def test_the_interval_covers_the_true_quantile_as_often_as_it_says(q: float, n: int) -> None:
    rng = random.Random(0)
    covered = 0
    for _ in range(600):
        interval = quantile_interval([rng.random() for _ in range(n)], q)
        assert interval is not None
        covered += interval[0] <= q <= interval[1]
    assert covered / 600 > 0.94


@given(VALUES)
def test_the_interval_does_not_depend_on_the_order(values: list[float]) -> None:
    assert quantile_interval(values, 0.5) == quantile_interval(sorted(values), 0.5)


@given(st.integers(2, 50), st.integers(1, 300))
def test_thinning_keeps_the_ends_the_order_and_the_limit(limit: int, n: int) -> None:
    kept = thinned(range(n), limit)
    assert len(kept) == min(n, limit)
    assert list(kept) == sorted(set(kept))
    assert (kept[0], kept[-1]) == (0, n - 1)


def test_the_interval_of_a_paired_loss_is_that_of_the_paper_and_turns_around_with_its_sides() -> None:
    # p = 3/66, q = 1/66: the difference is 2/66, its variance (4/66 - (2/66)^2) / 66.
    half = 1.959963984540054 * math.sqrt((4 / 66 - (2 / 66) ** 2) / 66)
    assert paired_loss_interval(2, 0, 64) == pytest.approx((2 / 66 - half, 2 / 66 + half))
    low, high = paired_loss_interval(0, 2, 64)
    assert (-high, -low) == pytest.approx(paired_loss_interval(2, 0, 64))


@pytest.mark.parametrize(("lose", "gain", "n"), [(0.01, 0.01, 200), (0.05, 0.01, 100), (0.02, 0.005, 1000)])
def test_the_interval_of_a_paired_loss_covers_the_true_one_as_often_as_it_says(
    lose: float, gain: float, n: int
) -> None:
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(n, [lose, gain, 1 - lose - gain], size=2000)
    ends = [paired_loss_interval(int(lost), int(gained), n) for lost, gained, _ in drawn]
    assert sum(low <= lose - gain <= high for low, high in ends) / 2000 > 0.94
