"""Intervals from rounds of timings whose neighbours may depend on each other, in plain Python.

Timings that follow each other share the clock, the temperature and the neighbours of the moment. An interval that takes
them for independent is too narrow: of its 95 % little more than 60 % are left when rounds correlate by 0.8. Values
within a round are therefore reduced to their median, and what dependence is left between rounds is measured and paid
for. Only the standard library and Python 3.10 are used, because these lines also run on boards.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from edgekd.core.stats import largest_rank, quantile

BOOTSTRAPS = 2000
FEWEST = 6
"""Independent values below which there is no 95 % interval of a median."""


@dataclass(frozen=True)
class Interval:
    """Where a median lies.

    Attributes:
        middle: The estimate.
        low: Lower end.
        high: Upper end.
        effective_n: Independent values that would say as much as those given.
        enough: There were enough of them for the confidence asked; without, the ends are the extremes.
    """

    middle: float
    low: float
    high: float
    effective_n: float
    enough: bool = True

    @property
    def width(self) -> float:
        """The whole width as a fraction of the middle."""
        return (self.high - self.low) / self.middle if self.middle else 0.0


def round_medians(rounds: Sequence[Sequence[float]]) -> list[float]:
    """One value for each round."""
    return [float(statistics.median(values)) for values in rounds]


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """An interval of the median of a series, read from the ranks of its values.

    For independent values it is the exact binomial interval of `edgekd.core.stats.quantile_interval`. Dependence
    widens it: the variance of a sample median grows by the inefficiency of the series of signs around the median
    (`inefficiency`), so the ranks are those of `n / inefficiency` independent values.

    Args:
        values: At least one, in the order they were taken.
        confidence: Of the interval; approximate for dependent values.
    """
    ordered, n = sorted(values), len(values)
    effective = n / inefficiency(values)
    count = max(1, int(effective))
    rank = largest_rank(count, 0.5, (1 - confidence) / 2)
    middle = float(statistics.median(ordered))
    if rank == 0:
        return Interval(middle, ordered[0], ordered[-1], effective, enough=False)
    outer = (rank - 1) * n // count
    return Interval(middle, ordered[outer], ordered[n - 1 - outer], effective)


def inefficiency(values: Sequence[float]) -> float:
    """How many values of the series say as much about its median as one independent value; 1 or more.

    `1 + 2 sum rho_k` over the autocorrelations rho of the signs around the median, summed in pairs as long as those are
    positive (Geyer, Practical Markov Chain Monte Carlo, 1992: the initial positive sequence). Short series
    underestimate it, so it is raised by its own share of the series.
    """
    n, middle = len(values), statistics.median(values)
    signs = [(value > middle) - (value < middle) for value in values]
    power = sum(sign * sign for sign in signs)
    if power == 0:
        return 1.0
    mean = sum(signs) / n
    centred = [sign - mean for sign in signs]

    def correlation(lag: int) -> float:
        return sum(a * b for a, b in zip(centred, centred[lag:])) / power  # noqa: B905 - the tail is what a lag leaves

    found = -1.0
    for lag in range(0, max(1, n // 2 - 1), 2):
        pair = correlation(lag) + correlation(lag + 1)
        if pair <= 0:
            break
        found += 2 * pair
    return 1.0 if found <= 1 else min(float(n), found * (1 + found / n))


def ratio_interval(
    rounds: Sequence[Sequence[float]],
    reference: Sequence[Sequence[float]],
    confidence: float = 0.95,
    *,
    seed: int = 0,
    resamples: int = BOOTSTRAPS,
) -> Interval:
    """The median over rounds of `rounds / reference`, with a bootstrap interval over rounds.

    Both ran in the same rounds, so what slowed a whole round cancels in its ratio. Where the ratios still depend on
    their neighbours, fewer rounds are drawn than there are (an m out of n bootstrap with m = n / inefficiency ** 1.5),
    which widens the interval. The exponent is above 1 because short series underestimate their inefficiency; drawing
    blocks of rounds instead covered 80 % to 87 % where this covers 93 % to 95 % (autoregressive ratios, phi 0.4).

    Args:
        rounds: Timings by round.
        reference: Timings of the reference in the same rounds.
        confidence: Of the interval.
        seed: Of the resampling.
        resamples: How often to draw.
    """
    pairs = zip(round_medians(rounds), round_medians(reference), strict=True)
    ratios = [mine / theirs for mine, theirs in pairs]
    n, slack = len(ratios), inefficiency(ratios)
    drawn, rng = min(n, max(3, int(n / slack**1.5))), random.Random(seed)
    medians = [statistics.median(rng.choices(ratios, k=drawn)) for _ in range(resamples)]
    middle, tail = float(statistics.median(ratios)), (1 - confidence) / 2
    if n / slack < FEWEST:
        # All that was seen, and as much again on either side: a drift says nothing about where it would have gone.
        low, high = min(ratios), max(ratios)
        return Interval(middle, low - (high - low), high + (high - low), n / slack, enough=False)
    low, high = quantile(medians, tail), quantile(medians, 1 - tail)
    return Interval(middle, min(low, middle), max(high, middle), n / slack)
