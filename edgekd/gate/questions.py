"""What a gate asks of measurements, each a sequential test that turns into one check of the verdict.

A question is asked after every unit of measurement: a fraction of a second in which every engine had several short
bursts of calls, in turns and in random order, after it was opened anew.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias

from edgekd.core.report import Check, Status
from edgekd.core.stats import quantile, quantile_interval
from edgekd.core.text import duration, ms, percent, significant
from edgekd.gate.baseline import LATENCY_CHECK
from edgekd.gate.sequential import ALPHA, PercentileTest, RatioTest

Unit: TypeAlias = Mapping[str, Sequence[Sequence[float]]]
"""Bursts of every engine by name, in ms; the bursts of one index belong to one round."""

FAR_PERCENTILES = (95, 99)
CANDIDATE, BASELINE = "candidate", "baseline"
RATIO_UNIT = "x"
"""Unit of a check whose value and limit are ratios to a baseline."""
CERTAINTY = f"{1 - 2 * ALPHA:.0%}".replace("%", " %")


class Question(Protocol):
    """Takes units until it knows."""

    def add(self, unit: Unit) -> None:
        """Takes the next unit."""

    @property
    def status(self) -> Status | None:
        """The answer, None while it is not clear."""

    def check(self, seconds: float) -> Check:
        """The answer in words; INCONCLUSIVE while it is not clear after `seconds` of measuring."""


class RatioQuestion:
    """Is the candidate's median latency more than `max_regression` above the baseline's, both measured in turns?

    Args:
        max_regression: Share by which the candidate may be slower: 0.05.
    """

    def __init__(self, max_regression: float) -> None:
        self._allowed = max_regression
        self._test = RatioTest(1 + max_regression)

    def add(self, unit: Unit) -> None:
        self._test.add(log_ratio(unit))

    @property
    def status(self) -> Status | None:
        return self._test.status

    def check(self, seconds: float) -> Check:
        status, ratio, (low, high) = self.status or "INCONCLUSIVE", self._test.ratio, self._test.interval()
        change = f"{percent(abs(ratio - 1))} {'slower' if ratio >= 1 else 'faster'} than the baseline"
        side = {"PASS": "within", "FAIL": "beyond", "INCONCLUSIVE": "not clear against"}[status]
        return Check(
            name=LATENCY_CHECK,
            status=status,
            value=ratio,
            limit=1 + self._allowed,
            unit=RATIO_UNIT,
            low=low if low > 0 else None,
            high=high if math.isfinite(high) else None,
            reason=f"{change} ({CERTAINTY} interval {_change(low)} to {_change(high)}), {side} the limit of "
            f"{100 * self._allowed:+g} %; measured in turns for {duration(seconds)}, in "
            f"{self._test.units} units",
        )


class LimitQuestion:
    """Is a percentile of the candidate's latency above a number of milliseconds?

    Args:
        name: Of the check.
        limit_ms: The number.
        percentile: Which.
        fail_above_ms: See `PercentileTest`.
        about: Says where the number comes from, after `the limit of 5 ms`.
    """

    def __init__(
        self, name: str, limit_ms: float, percentile: int, *, fail_above_ms: float | None = None, about: str = ""
    ) -> None:
        self._name, self._limit_ms, self._percentile, self._about = name, limit_ms, percentile, about
        self._test = PercentileTest(limit_ms, percentile, fail_above_ms=fail_above_ms)
        self._values: list[float] = []

    def add(self, unit: Unit) -> None:
        bursts = unit[CANDIDATE]
        self._values += flat(bursts)
        # One game on the 1 % of slow calls wins little, so far percentiles take hundreds of games: one for each burst.
        for calls in bursts if self._percentile in FAR_PERCENTILES else [flat(bursts)]:
            self._test.add(calls)

    @property
    def status(self) -> Status | None:
        return self._test.status

    def check(self, seconds: float) -> Check:
        status, (low, high) = self.status or "INCONCLUSIVE", self._test.interval()
        value = quantile(self._values, self._percentile / 100)
        side = {"PASS": "keeps", "FAIL": "misses", "INCONCLUSIVE": "is not clear against"}[status]
        return Check(
            name=self._name,
            status=status,
            value=value,
            limit=self._limit_ms,
            unit="ms",
            low=low if low > 0 else None,
            high=high if math.isfinite(high) else None,
            reason=f"p{self._percentile} {ms(value)} ({CERTAINTY} interval {_bounds(low, high)}) {side} the limit of "
            f"{significant(self._limit_ms)} ms{self._about}; {len(self._values)} calls in {duration(seconds)}",
        )


class PrecisionQuestion:
    """Is the candidate's median known well enough? It fails nothing: it only says when to stop.

    Args:
        precision: Half of the interval's width, as a share of the median.
    """

    def __init__(self, precision: float) -> None:
        self._precision = precision
        self._medians: list[float] = []

    def add(self, unit: Unit) -> None:
        self._medians.append(statistics.median(flat(unit[CANDIDATE])))

    @property
    def status(self) -> Status | None:
        found = quantile_interval(self._medians, 0.5)
        if found is None or found[1] - found[0] > 2 * self._precision * statistics.median(self._medians):
            return None
        return "PASS"

    def check(self, seconds: float) -> Check:
        status = self.status or "INCONCLUSIVE"
        reason = f"the median is {'' if self.status else 'not '}known to {100 * self._precision:g} %"
        return Check(name="precision", status=status, reason=f"{reason} after {duration(seconds)}")


def log_ratio(unit: Unit) -> float:
    """log(candidate / baseline) of a unit: the median over its rounds of the ratio of the two bursts' medians."""
    pairs = zip(unit[CANDIDATE], unit[BASELINE], strict=False)
    return statistics.median(math.log(statistics.median(a) / statistics.median(b)) for a, b in pairs)


def flat(bursts: Sequence[Sequence[float]]) -> list[float]:
    """All values, in order."""
    return [value for burst in bursts for value in burst]


def _bounds(low: float, high: float) -> str:
    """`0.84 to 0.87`; an end that is not known yet is left open."""
    if low <= 0 and not math.isfinite(high):
        return "still open"
    if low <= 0:
        return f"up to {significant(high)}"
    return f"{significant(low)} or more" if not math.isfinite(high) else f"{significant(low)} to {significant(high)}"


def _change(ratio: float) -> str:
    """`+2.1 %`; a bound that is not known yet is said in words."""
    if not math.isfinite(ratio) or ratio <= 0:
        return "unknown"
    return f"{100 * (ratio - 1):+.1f} %"
