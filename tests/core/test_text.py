"""Numbers as people read them."""

from __future__ import annotations

import pytest

from edgekd.core.text import counted, duration, points, significant


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.4123, "0.412"), (9.996, "10.0"), (99.96, "100"), (1239.6, "1,240"), (0.00123, "0.00123"), (-3.456, "-3.46")],
)
def test_three_digits_are_significant_and_never_an_exponent(value: float, text: str) -> None:
    assert significant(value) == text


def test_zero_stays_zero() -> None:
    assert significant(0.0) == "0"
    assert points(-0.0001) == "0.0 points"


@pytest.mark.parametrize(("seconds", "text"), [(0.42, "0.4 s"), (12.3, "12 s"), (420, "7 min"), (5400, "1.5 h")])
def test_a_duration_is_as_long_as_it_deserves(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_one_of_a_thing_has_no_plural() -> None:
    assert [counted(count, "layer") for count in (0, 1, 2)] == ["0 layers", "1 layer", "2 layers"]
