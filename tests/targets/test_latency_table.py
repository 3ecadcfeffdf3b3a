"""What a latency table says of widths that were timed, and between them."""

from __future__ import annotations

import pytest

from edgekd.errors import UserError
from edgekd.targets.latency_table import Timed, TimedKind, TimedWidth


def width(kept: int, effective: float) -> TimedWidth:
    return TimedWidth(kept=kept, time=Timed(p50_ms=1.0, low_ms=0.9, high_ms=1.1), effective=effective)


def test_a_width_between_two_counts_as_the_wider_one() -> None:
    kind = TimedKind(groups=("a",), units=64, widths=(width(48, 50.0), width(32, 70.0), width(16, 20.0)))
    kept = (64, 49, 48, 33, 32, 17, 16, 1)
    assert [kind.effective_of(units) for units in kept] == [64.0, 64.0, 50.0, 50.0, 70.0, 70.0, 20.0, 20.0]


@pytest.mark.parametrize("kept", [(32, 48), (64,), (32, 32)])
def test_widths_that_do_not_fall_are_refused(kept: tuple[int, ...]) -> None:
    plain = {"groups": ["a"], "units": 64, "widths": [width(units, 1.0).plain() for units in kept]}
    with pytest.raises(UserError, match="widths must fall from 64"):
        TimedKind.parse(plain, "table")
