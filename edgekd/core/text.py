"""Numbers as people read them, the same in a verdict's sentence, on the console and in the report."""

from __future__ import annotations

import math


def significant(value: float, digits: int = 3) -> str:
    """`value` with `digits` significant digits, never in exponent form: 0.412, 3.06, 1240."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    rounded = round(value, decimals)
    # 9.996 rounds up to 10.0: one more digit before the point is one fewer after it.
    decimals = digits - 1 - math.floor(math.log10(abs(rounded)))
    return f"{rounded:,.{max(decimals, 0)}f}"


def ms(value: float) -> str:
    """A latency: `0.412 ms`."""
    return f"{significant(value)} ms"


def mib(value: float) -> str:
    """A file size: `0.21 MiB`."""
    return f"{significant(value)} MiB"


def percent(value: float, decimals: int = 1) -> str:
    """A ratio in [0, 1] as a percentage: `89.7 %`."""
    return f"{100 * value:.{decimals}f} %"


def points(value: float, decimals: int = 1) -> str:
    """A difference of two ratios in percentage points: `0.6 points`; the sign is kept."""
    # + 0.0 turns the -0.0 that rounding can leave into 0.0.
    return f"{round(100 * value, decimals) + 0.0:.{decimals}f} points"


def duration(seconds: float) -> str:
    """A time as long as it deserves: `0.4 s`, `12 s`, `7 min`, `1.5 h`."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def counted(count: int, noun: str) -> str:
    """`1 layer`, `2 layers`: for nouns whose plural is an s."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
