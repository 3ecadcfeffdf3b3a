"""Order statistics of timings, in plain Python: what the profiler reports and the gate decides with.

Latencies are skewed and heavy-tailed, so nothing here assumes a distribution: the interval of a quantile is read from
the ranks of the values themselves (David and Nagaraja, Order Statistics, 3rd ed., 2003, section 7.1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

_Z95 = 1.959963984540054
"""Quantile of the normal distribution that leaves 2.5 % above it."""


def quantile(values: Sequence[float], q: float) -> float:
    """The `q`-quantile by linear interpolation between ranks (NumPy's default).

    Args:
        values: At least one, in any order.
        q: In [0, 1].
    """
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def quantile_interval(values: Sequence[float], q: float, confidence: float = 0.95) -> tuple[float, float] | None:
    """An interval that covers the true `q`-quantile with at least `confidence`, for independent values.

    The ranks come from the binomial distribution of the number of values below the quantile, so the coverage is exact
    and holds for any distribution.

    Returns:
        (low, high), two of the values; None when there are too few of them (6 for a median, 368 for a p99, at 95 %).
    """
    ordered = sorted(values)
    n, tail = len(ordered), (1 - confidence) / 2
    low = largest_rank(n, q, tail)
    high = largest_rank(n, 1 - q, tail)  # counted from the other end: P(B >= u; q) = P(B' <= n - u; 1 - q)
    if low == 0 or high == 0:
        return None
    return ordered[low - 1], ordered[n - high]


def thinned(values: Sequence[float], limit: int) -> tuple[float, ...]:
    """At most `limit` of the values, evenly spaced and in their order, the first and the last included."""
    n = len(values)
    if n <= limit:
        return tuple(values)
    return tuple(values[round(i * (n - 1) / (limit - 1))] for i in range(limit))


def largest_rank(n: int, q: float, tail: float) -> int:
    """The largest rank r with P(B <= r - 1) <= tail for B ~ Binomial(n, q); 0 when there is none."""
    rank, total = 0, 0.0
    for k in range(n):
        total += _binomial_mass(k, n, q)
        if total > tail:
            break
        rank = k + 1
    return rank


def _binomial_mass(k: int, n: int, q: float) -> float:
    if q in (0.0, 1.0):
        return float(k == n * q)
    choose = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(choose + k * math.log(q) + (n - k) * math.log1p(-q))


def paired_loss_interval(lost: int, gained: int, n: int) -> tuple[float, float]:
    """A 95 % interval of the share of images that a model loses against another one on the same `n` images.

    Only images that one of them gets right and the other does not tell them apart; that both are judged on the same
    images makes it far narrower than an interval of two independent shares. Bonett and Price's adjustment of Wald's
    interval (Journal of Educational and Behavioral Statistics 37, 2012): one more discordant image of either kind.

    Args:
        lost: Images that only the reference gets right.
        gained: Images that only the other one gets right.
        n: Images in all, at least one.
    """
    p, q = (lost + 1) / (n + 2), (gained + 1) / (n + 2)
    half = _Z95 * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    return max(-1.0, p - q - half), min(1.0, p - q + half)
