"""From times of engines to what they correct in a latency model: effective widths, and a factor for each operation.

A width's effective width is the one at which the model predicts what was measured, so that a kernel which computes 56
channels as slowly as 64 has the effective width 64 there. Neighbouring groups still act together as they do in the
model: both sides of a layer multiply.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edgekd.core.rounds import Interval, median_interval
from edgekd.nn.channels.widths import Corrections, WidthLatency
from edgekd.profiling.table.kinds import Kind
from edgekd.targets.latency_table import Timed, TimedKind, TimedWidth

_HALVINGS = 50
_WIDEST = 8
"""Times the whole width: an engine that is slower yet counts as so wide."""


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """What times say of a model; the names are those of `edgekd.targets.latency_table.LatencyTable`."""

    kinds: tuple[TimedKind, ...]
    scales: Mapping[str, float]
    otherwise: float
    fixed_ms: float


@dataclass(frozen=True)
class Series:
    """What one engine took.

    Attributes:
        time: The median of all its runs.
        rounds: The median in each round; empty where only the time is known.
        turns: Names the engines that it took turns with, which are those that it shares its rounds with.
    """

    time: Timed
    rounds: tuple[float, ...] = ()
    turns: str = ""

    def beside(self, other: Series) -> Interval | None:
        """The ratio of this engine's time to another one's within rounds; None where they had no rounds in common.

        What slowed a whole round cancels, so this tells apart what two medians do not.
        """
        if not self.rounds or self.turns != other.turns or len(self.rounds) != len(other.rounds):
            return None
        return median_interval([mine / theirs for mine, theirs in zip(self.rounds, other.rounds, strict=True)])


@dataclass(frozen=True, kw_only=True)
class _Rung:
    """One width of a kind: its time, and what is left of it when differences within the noise are taken for none."""

    kept: int
    time: Timed
    level_ms: float


def calibrated(latency: WidthLatency, whole: Series, times: Sequence[tuple[Kind, Mapping[int, Series]]]) -> Calibrated:
    """The corrections under which the model predicts every time, up to the noise of it.

    The model's prices are multiplied first, per operation, by the least factor with which it can save all that was
    measured: then no width is effectively narrower than it is, and every time has an effective width. An operation that
    several kinds change takes the largest of their factors, all that none changes take the ratio of the whole network.

    Args:
        latency: Of the whole network by the model; left with the corrections but for their stairs.
        whole: Of the whole network.
        times: Of each kind by units kept, of one engine in which all groups of the kind are so narrow.
    """
    ladders, whole_ms = [(kind, _rungs(whole, timed)) for kind, timed in times if timed], whole.time.p50_ms
    otherwise = whole_ms / latency.now_ms
    scales = _scales(latency, whole_ms, ladders, otherwise)
    latency.correct(Corrections(scales=scales, otherwise=otherwise))
    fixed_ms = whole_ms - latency.now_ms
    latency.correct(Corrections(scales=scales, otherwise=otherwise, fixed_ms=fixed_ms))
    kinds = []
    for kind, rungs in ladders:
        taken_ms = latency.together(kind.groups)
        widths = tuple(
            TimedWidth(
                kept=rung.kept,
                time=rung.time,
                effective=_effective(taken_ms, kind.units, whole_ms - rung.level_ms),
            )
            for rung in rungs
        )
        kinds.append(TimedKind(groups=tuple(group.name for group in kind.groups), units=kind.units, widths=widths))
    return Calibrated(kinds=tuple(kinds), scales=scales, otherwise=otherwise, fixed_ms=fixed_ms)


def levels(whole: Series, narrower: Sequence[Series]) -> list[float]:
    """The milliseconds that each width is taken to have: its own, unless it cannot be told apart from a wider one.

    Then they are that one's, and the slowest one's of several: a step that is not seen to be faster counts as not
    faster. A rise beyond the noise stays a rise. A width's own are the whole one's times the ratio within rounds.

    Args:
        whole: Of the whole width.
        narrower: Of narrower and narrower widths.
    """
    distinct, found = [(whole, whole.time.p50_ms)], []
    for series in narrower:
        ratio = series.beside(whole)
        own_ms = series.time.p50_ms if ratio is None else whole.time.p50_ms * ratio.middle
        alike = [level_ms for level, level_ms in distinct if not apart(level, series)]
        if not alike:
            distinct.append((series, own_ms))
        found.append(max(alike, default=own_ms))
    return found


def apart(one: Series, other: Series) -> bool:
    """Whether one of two engines is faster: the 95 % interval of their ratio within rounds leaves one out.

    Engines without rounds in common are compared by their medians, whose difference must leave zero out: the distances
    from each median to the ends of its interval add up as squares (Zou and Donner 2008, Statistics in Medicine 27:1693,
    MOVER).
    """
    ratio = one.beside(other)
    if ratio is not None:
        return ratio.enough and not ratio.low <= 1 <= ratio.high
    slow, fast = sorted((one.time, other.time), key=lambda time: -time.p50_ms)
    return slow.p50_ms - fast.p50_ms > math.hypot(slow.p50_ms - slow.low_ms, fast.high_ms - fast.p50_ms)


def _rungs(whole: Series, timed: Mapping[int, Series]) -> tuple[_Rung, ...]:
    ordered = sorted(timed.items(), reverse=True)
    found = levels(whole, [series for _, series in ordered])
    return tuple(
        _Rung(kept=kept, time=series.time, level_ms=level) for (kept, series), level in zip(ordered, found, strict=True)
    )


def _scales(
    latency: WidthLatency, whole_ms: float, ladders: Sequence[tuple[Kind, Sequence[_Rung]]], otherwise: float
) -> dict[str, float]:
    """By operation that some kind changes."""
    scales: dict[str, float] = {}
    for kind, rungs in ladders:
        taken_ms = latency.together(kind.groups)
        predicted = [(rung, taken_ms(kind.units) - taken_ms(rung.kept)) for rung in rungs]
        needed = [(whole_ms - rung.level_ms) / saved for rung, saved in predicted if saved > 0]
        for name in latency.touched(kind.groups):
            scales[name] = max(scales.get(name, 0.0), *needed, 0.0)
    # What never got faster has no factor of its own; its effective width is the whole one whatever it is.
    return {name: scale or otherwise for name, scale in sorted(scales.items())}


def _effective(taken_ms: Callable[[float], float], units: int, saved_ms: float) -> float:
    """The width at which the model takes `saved_ms` less than at the whole one."""
    if saved_ms == 0:
        return float(units)
    goal_ms = taken_ms(units) - saved_ms
    low, high = (0.0, float(units)) if saved_ms > 0 else (float(units), float(_WIDEST * units))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if taken_ms(middle) < goal_ms else (low, middle)
    return high
