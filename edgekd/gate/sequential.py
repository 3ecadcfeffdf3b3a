"""Is the candidate slower than allowed? Two tests that may be read after every unit of measurement and stop when clear.

`RatioTest` compares two engines that were measured in turns: one observation is the logarithm of their ratio in a unit
(some rounds within a fraction of a second, so that both saw the same noise). `PercentileTest` compares one engine's
percentile with a number: one observation is the share of a unit's calls that were slower.

Both answer FAIL, PASS or nothing yet, each of the two wrong answers having a chance of at most `alpha` over the whole
run, and both give the interval that the answer is read from. They measure nothing and know no clock.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_right
from collections.abc import Callable, Sequence

from edgekd.core.report import Status
from edgekd.gate.wealth import Wealth, p_value_of

ALPHA = 0.01
"""Chance of a wrong FAIL, and of a wrong PASS, over a whole run."""
FIRST_SCALE = 0.02
"""Spread of log ratios that is assumed before any was seen: 2 %."""
LEAST_SCALE = 5e-4
SOFTNESS = 2.0
"""Deviations up to about this many times the usual spread count by their size, larger ones only by their sign."""
_STEPS = 40


class RatioTest:
    """Whether the ratio of two latencies is above a limit, from log ratios of units measured side by side.

    The game: win tanh of the deviation from the limit in units of the spread seen before. It is fair where the log
    ratios are spread evenly around the limit, and bounded, so that a disturbed unit costs no more than any other. For
    tiny scales it is the sign test, for large ones Student's; the centre it judges is the M-estimate in between, which
    is the median where the spread is symmetric. That needs no normal distribution, but units whose disturbances do not
    depend on the units before, which is why a unit is longer than a burst of noise and both engines are in each.

    Args:
        limit: Largest ratio that is allowed, such as 1.05.
        alpha: Chance of each wrong answer.
    """

    def __init__(self, limit: float, *, alpha: float = ALPHA) -> None:
        self._limit = math.log(limit)
        self._alpha = alpha
        self._values: list[float] = []
        self._scales: list[float] = []
        self._scale = FIRST_SCALE
        self._above, self._below = Wealth(), Wealth()

    def add(self, log_ratio: float) -> None:
        """Takes the next unit's log(candidate / baseline)."""
        # The stake is set before the value is seen: the scale comes from earlier values only.
        self._scales.append(self._scale)
        self._values.append(log_ratio)
        gain = math.tanh((log_ratio - self._limit) / self._scale)
        self._above.add(gain)
        self._below.add(-gain)
        self._scale = SOFTNESS * _spread(self._values)

    @property
    def units(self) -> int:
        return len(self._values)

    @property
    def status(self) -> Status | None:
        """FAIL when the ratio is surely above the limit, PASS when surely not, None when that is not clear yet."""
        return _status(self._above.p_value, self._below.p_value, self._alpha)

    @property
    def ratio(self) -> float:
        """The median of the ratios so far; 1 when there is none."""
        return math.exp(statistics.median(self._values)) if self._values else 1.0

    def interval(self) -> tuple[float, float]:
        """Lowest and highest ratio that the units do not rule out, each end with a chance of error of `alpha`."""
        if not self._values:
            return 0.0, math.inf
        centre, reach = statistics.median(self._values), max(map(abs, self._values)) + 1.0

        def excluded(sign: float) -> Callable[[float], bool]:
            return lambda at: (
                p_value_of(
                    math.tanh(sign * (value - at) / scale)
                    for value, scale in zip(self._values, self._scales, strict=True)
                )
                <= self._alpha
            )

        low = _edge(excluded(1.0), inside=centre, outside=centre - reach)
        high = _edge(excluded(-1.0), inside=centre, outside=centre + reach)
        return math.exp(low), math.exp(high)


class PercentileTest:
    """Whether a percentile of one engine's latency is above a limit, from the calls of each unit.

    The percentile is above the limit exactly when more than 1 - percentile of the calls are slower than it. The game is
    on a unit's share of slower calls, a number in [0, 1] whose mean is what is asked for (bounded mean by betting), so
    calls of one unit may depend on each other, as they do.

    Args:
        limit_ms: Largest value of the percentile that is allowed.
        percentile: In (0, 100).
        fail_above_ms: Where the limit itself is uncertain: a FAIL takes a percentile above this, a PASS one that is
            not above `limit_ms`. Default: the same.
        alpha: Chance of each wrong answer.
    """

    def __init__(
        self, limit_ms: float, percentile: int, *, fail_above_ms: float | None = None, alpha: float = ALPHA
    ) -> None:
        self._pass_limit_ms = limit_ms
        self._fail_limit_ms = limit_ms if fail_above_ms is None else fail_above_ms
        self._allowed = 1 - percentile / 100
        self._alpha = alpha
        self._units: list[list[float]] = []
        self._above, self._below = Wealth(), Wealth()

    def add(self, values_ms: Sequence[float]) -> None:
        """Takes the calls of the next unit, at least one."""
        ordered = sorted(values_ms)
        self._units.append(ordered)
        self._above.add(self._gain_above(_share_above(ordered, self._fail_limit_ms)))
        self._below.add(self._gain_below(_share_above(ordered, self._pass_limit_ms)))

    @property
    def units(self) -> int:
        return len(self._units)

    @property
    def status(self) -> Status | None:
        """FAIL when the percentile is surely above the limit, PASS when surely not, None when that is not clear yet."""
        return _status(self._above.p_value, self._below.p_value, self._alpha)

    def interval(self) -> tuple[float, float]:
        """Lowest and highest latency that the percentile can have; 0 and infinity where the units rule out nothing."""
        values = sorted({value for unit in self._units for value in unit})
        low = _last(values, lambda at: self._p_value(at, self._gain_above) <= self._alpha)
        high = _first(values, lambda at: self._p_value(at, self._gain_below) <= self._alpha)
        return 0.0 if low is None else low, math.inf if high is None else high

    def _gain_above(self, share: float) -> float:
        return (share - self._allowed) / self._allowed

    def _gain_below(self, share: float) -> float:
        return (self._allowed - share) / (1 - self._allowed)

    def _p_value(self, limit_ms: float, gain: Callable[[float], float]) -> float:
        return p_value_of(gain(_share_above(unit, limit_ms)) for unit in self._units)


def _status(p_above: float, p_below: float, alpha: float) -> Status | None:
    """What the two p-values say: rejecting "not above" is a FAIL, rejecting "above" is a PASS."""
    if min(p_above, p_below) > alpha:
        return None
    return "FAIL" if p_above < p_below else "PASS"


def _spread(values: Sequence[float]) -> float:
    """Standard deviation by the median absolute deviation, drawn towards the first guess while values are few."""
    middle = statistics.median(values)
    found = 1.4826 * statistics.median(abs(value - middle) for value in values)
    weight = 2 / (2 + len(values))
    return max(weight * FIRST_SCALE / SOFTNESS + (1 - weight) * found, LEAST_SCALE)


def _share_above(ordered: Sequence[float], limit: float) -> float:
    return 1 - bisect_right(ordered, limit) / len(ordered)


def _edge(excluded: Callable[[float], bool], *, inside: float, outside: float) -> float:
    """The border between what is excluded and what is not; infinite when even `outside` is not excluded."""
    if not excluded(outside):
        return math.copysign(math.inf, outside - inside)
    for _ in range(_STEPS):
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if excluded(middle) else (middle, outside)
    return outside


def _last(values: Sequence[float], holds: Callable[[float], bool]) -> float | None:
    """The last value for which a condition holds that holds for the first ones, if for any."""
    found, end = 0, len(values)
    while found < end:
        middle = (found + end) // 2
        found, end = (middle + 1, end) if holds(values[middle]) else (found, middle)
    return values[found - 1] if found else None


def _first(values: Sequence[float], holds: Callable[[float], bool]) -> float | None:
    """The first value for which a condition holds that holds for the last ones, if for any."""
    found, end = 0, len(values)
    while found < end:
        middle = (found + end) // 2
        found, end = (found, middle) if holds(values[middle]) else (middle + 1, end)
    return values[found] if found < len(values) else None
