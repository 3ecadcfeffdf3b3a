"""The two sequential tests, on noise made to order: wrong answers are rare although every unit is looked at."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.gate.sequential import PercentileTest, RatioTest

Draw = Callable[[random.Random], float]


def gaussian(rng: random.Random) -> float:
    return rng.gauss(0, 0.01)


def heavy(rng: random.Random) -> float:
    """Mostly quiet, one unit in ten disturbed twenty times as much."""
    return rng.gauss(0, 0.2 if rng.random() < 0.1 else 0.01)


def answer(test: RatioTest, rng: random.Random, ratio: float, draw: Draw, units: int = 200) -> tuple[str | None, int]:
    """The first answer, and after how many units."""
    for unit in range(1, units + 1):
        test.add(math.log(ratio) + draw(rng))
        if test.status is not None:
            return test.status, unit
    return None, units


@pytest.mark.parametrize("draw", [gaussian, heavy])
def test_a_ratio_at_the_limit_is_seldom_answered_at_all(draw: Draw) -> None:
    rng = random.Random(1)
    found = [answer(RatioTest(1.05), rng, 1.05, draw, units=80)[0] for _ in range(100)]
    assert found.count("FAIL") <= 3, "one in a hundred at most, and chance"
    assert found.count("PASS") <= 3


@pytest.mark.parametrize("draw", [gaussian, heavy])
@pytest.mark.parametrize(("ratio", "status"), [(1.0, "PASS"), (1.05, "FAIL"), (1.2, "FAIL"), (0.5, "PASS")])
def test_a_clear_ratio_is_always_answered_rightly_and_soon(draw: Draw, ratio: float, status: str) -> None:
    rng = random.Random(2)
    found = [answer(RatioTest(1.02), rng, ratio, draw) for _ in range(40)]
    assert {status} == {answered for answered, _ in found}
    assert sorted(units for _, units in found)[38] <= 40


def test_a_larger_regression_is_found_no_later_than_a_smaller_one() -> None:
    smaller = answer(RatioTest(1.02), random.Random(3), 1.03, gaussian)[1]
    larger = answer(RatioTest(1.02), random.Random(3), 1.2, gaussian)[1]
    assert larger < smaller


def test_a_burst_of_noise_in_one_unit_decides_nothing() -> None:
    test = RatioTest(1.02)
    for value in (0.0, 0.0, math.log(50), 0.0, 0.0):
        test.add(value)
    assert test.status is None
    assert test.ratio == 1.0


def test_the_interval_of_the_ratio_covers_the_truth_and_agrees_with_the_answer() -> None:
    rng, covered = random.Random(4), 0
    for _ in range(40):
        test = RatioTest(1.02)
        for _ in range(40):
            test.add(math.log(1.05) + heavy(rng))
        low, high = test.interval()
        covered += low <= 1.05 <= high
        assert (test.status == "FAIL") == (low > 1.02)
        assert low <= test.ratio <= high
    assert covered >= 38


def test_without_units_every_ratio_is_possible() -> None:
    assert RatioTest(1.05).interval() == (0.0, math.inf)
    assert RatioTest(1.05).status is None


@given(st.floats(0.2, 5.0), st.lists(st.floats(-0.1, 0.1), min_size=1, max_size=30))
def test_the_two_sides_mirror_each_other(limit: float, values: list[float]) -> None:
    test, mirrored = RatioTest(limit), RatioTest(1 / limit)
    for value in values:
        test.add(value)
        mirrored.add(-value)
    swapped = {"PASS": "FAIL", "FAIL": "PASS", None: None}
    assert mirrored.status == swapped[test.status]


def unit(rng: random.Random, calls: int = 20, scale: float = 1.0) -> list[float]:
    """Calls that share a disturbance, as calls of one unit do; each is 1 ms in the median."""
    shared = rng.gauss(0, 0.05)
    return [scale * math.exp(shared + rng.gauss(0, 0.05)) for _ in range(calls)]


@pytest.mark.parametrize("percentile", [50, 90])
def test_a_percentile_at_the_limit_is_seldom_answered(percentile: int) -> None:
    rng = random.Random(5)
    everything = sorted(value for _ in range(2000) for value in unit(rng))
    limit = everything[len(everything) * percentile // 100]
    wrong = 0
    for _ in range(60):
        test = PercentileTest(limit, percentile)
        for _ in range(60):
            test.add(unit(rng))
            if test.status is not None:
                wrong += 1
                break
    assert wrong <= 4, "one in a hundred for each of the two answers, and chance"


@pytest.mark.parametrize(("percentile", "units"), [(50, 12), (90, 60), (99, 750)])
def test_a_clear_percentile_passes_after_as_many_units_as_it_must_take(percentile: int, units: int) -> None:
    rng, test = random.Random(6), PercentileTest(2.0, percentile)
    for _ in range(units):
        test.add(unit(rng))
    assert test.status == "PASS"
    low, high = test.interval()
    assert low < high < 2.0


def test_a_percentile_above_the_limit_fails() -> None:
    rng, test = random.Random(7), PercentileTest(1.0, 99)
    for _ in range(20):
        test.add(unit(rng))
    assert test.status == "FAIL"
    assert test.interval()[0] > 1.0


def test_between_the_two_limits_of_an_uncertain_limit_there_is_no_answer() -> None:
    rng, test = random.Random(8), PercentileTest(0.9, 50, fail_above_ms=1.1)
    for _ in range(100):
        test.add(unit(rng))
    assert test.status is None


def test_few_units_leave_the_ends_of_the_percentile_open() -> None:
    test = PercentileTest(2.0, 99)
    test.add([1.0])
    assert test.interval() == (0.0, math.inf)
