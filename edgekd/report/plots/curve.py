"""A pruning curve: accuracy above, latency below, over the share of the multiply-accumulates that is left.

What it answers at a glance: how far can this network be cut before accuracy goes, and does the engine get faster at
all? The dashed line is the latency of the whole network's fastest engine if time fell with the arithmetic; the gap to
it is what the hardware does not give back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from edgekd.core.report import Budget
from edgekd.core.text import counted, ms, percent, points, significant
from edgekd.report.data import CurveEngine, CurvePoint, PruningCurve
from edgekd.report.plots.marks import PRECISION_NAMES, marker, metric_name, precision_name, runtime_name
from edgekd.report.signs import TIMES
from edgekd.report.svg import Scale, label, line, path, picture, tag, titled

WIDTH, HEIGHT = 1040.0, 500.0
LEFT, RIGHT = 64.0, 880.0
UPPER, LOWER = (26.0, 196.0), (252.0, 446.0)
"""Top and bottom of the panel of accuracies and of the panel of latencies."""
TEACHER_NAME = "Teacher"
NO_DIFFERENCE = 0.0005
"""Of two accuracies that read the same in percent."""
GAP = 16.0
"""Least distance of two lines of text."""


def curve_picture(curve: PruningCurve, budget: Budget) -> str:
    """The drawing.

    Args:
        curve: At least two points.
        budget: Its limits are drawn where they were asked for.
    """
    x = Scale(low=1.0, high=min(min(point.kept for point in curve.points), 0.95), start=LEFT + 14, end=RIGHT - 14)
    text = f"Accuracy and latency of {curve.name} over {counted(len(curve.points) - 1, 'cut')}"
    return picture(WIDTH, HEIGHT, text, _frame(curve, x), _accuracies(curve, budget, x), _latencies(curve, budget, x))


def curve_in_words(curve: PruningCurve) -> str:
    """What the curve says of its two ends, by the engine that is fastest at each."""
    start, end = (min(point.engines, key=lambda e: e.median_ms) for point in (curve.points[0], curve.points[-1]))
    kept, factor = curve.points[-1].kept, start.median_ms / end.median_ms
    pace = f"{significant(factor, 2)}{TIMES} faster" if factor >= 1 else f"{significant(1 / factor, 2)}{TIMES} slower"
    said = (
        f"With {percent(kept)} of the multiply-accumulates the fastest engine takes {ms(end.median_ms)} "
        f"({precision_name(end.precision)}) instead of {ms(start.median_ms)} ({precision_name(start.precision)}): "
        f"{pace}, where arithmetic alone would give {significant(1 / kept, 2)}{TIMES}."
    )
    if start.accuracy is not None and end.accuracy is not None:
        lost = start.accuracy.value - end.accuracy.value
        far = "as" if abs(lost) < NO_DIFFERENCE else f"{points(abs(lost))} {'less' if lost > 0 else 'more'}"
        said += f" It is {far} accurate."
    for cut in curve.missing:
        said += f" Cut {cut} is not drawn: none of its engines has a latency."
    return said


def _frame(curve: PruningCurve, x: Scale) -> str:
    parts = []
    for point in curve.points:
        across = x(point.kept)
        parts += [line(across, top, across, bottom, "grid") for top, bottom in (UPPER, LOWER)]
    for across, point in _spread(curve, x):
        parts.append(label(across, LOWER[1] + 20, percent(point.kept), "muted", "middle"))
    parts += [line(LEFT, bottom, RIGHT, bottom, "axis") for _, bottom in (UPPER, LOWER)]
    parts.append(label(RIGHT, LOWER[1] + 44, "Multiply-accumulates left after each cut", "muted", "end"))
    return tag("g", {}, *parts)


def _spread(curve: PruningCurve, x: Scale) -> Iterator[tuple[float, CurvePoint]]:
    """The points whose tick labels do not run into the one before; the last one always has its label."""
    last = x(curve.points[-1].kept)
    taken = float("-inf")
    for point in curve.points:
        across = x(point.kept)
        if across == last or (across - taken >= 56 and last - across >= 56):
            taken = across
            yield across, point


def _accuracies(curve: PruningCurve, budget: Budget, x: Scale) -> str:
    known = [engine.accuracy for point in curve.points for engine in point.engines if engine.accuracy is not None]
    if not known:
        middle = (UPPER[0] + UPPER[1]) / 2
        return label((LEFT + RIGHT) / 2, middle, "Accuracy was not evaluated: no images were given", "muted", "middle")
    floor = _floor(curve, budget)
    values = [accuracy.value for accuracy in known] + ([floor] if floor is not None else [])
    pad = max(0.12 * (max(values) - min(values)), 0.005)
    y = Scale(low=min(values) - pad, high=max(values) + pad, start=UPPER[1], end=UPPER[0])
    parts = [label(LEFT - 48, UPPER[0] - 10, metric_name(known[0].metric), "muted")]
    parts += _ticks(y, lambda value: f"{100 * value:.3g} %", highest=1.0)
    if floor is not None:
        parts += _limit_line(y(floor), f"lowest allowed: {percent(floor)}")
    return tag("g", {}, *parts, *_lines(curve, x, y, accuracy=True))


def _latencies(curve: PruningCurve, budget: Budget, x: Scale) -> str:
    limit = budget.max_latency_ms
    start = min(curve.points[0].engines, key=lambda engine: engine.median_ms)
    ideal = [(point.kept, start.median_ms * point.kept) for point in curve.points]
    values = [engine.median_ms for point in curve.points for engine in point.engines]
    within = limit is not None and limit <= 1.5 * max(values)
    y = Scale(low=0.0, high=1.1 * max([*values, limit if within and limit else 0.0]), start=LOWER[1], end=LOWER[0])
    origin = "Median latency" if curve.origin == "measured" else "Predicted latency"
    parts = [label(LEFT - 48, LOWER[0] - 10, f"{origin} at batch 1, ms", "muted")]
    parts += _ticks(y, lambda value: f"{value:.3g}")
    parts.append(path([(x(kept), y(value)) for kept, value in ideal], "ideal"))
    if within and limit is not None:
        parts += _limit_line(y(limit), f"limit {limit:g} ms")
    return tag("g", {}, *parts, *_lines(curve, x, y, accuracy=False, beside=[(y(ideal[-1][1]), "by arithmetic alone")]))


def _lines(
    curve: PruningCurve, x: Scale, y: Scale, *, accuracy: bool, beside: list[tuple[float, str]] | None = None
) -> list[str]:
    """A line with marks for each precision, and the names at its right end, kept apart."""
    parts: list[str] = []
    names: list[tuple[float, str, str]] = [(height, text, "muted") for height, text in beside or []]
    for precision in PRECISION_NAMES:
        engines = [(point, engine) for point in curve.points if (engine := _of(point, precision)) is not None]
        drawn = [(p, e, value) for p, e in engines if (value := _value(e, accuracy=accuracy)) is not None]
        if not drawn:
            continue
        parts.append(path([(x(point.kept), y(value)) for point, _, value in drawn], f"curve {precision}"))
        parts += [_mark(engine, x(point.kept), value, y, accuracy=accuracy) for point, engine, value in drawn]
        first, last = drawn[0][2], drawn[-1][2]
        ended = percent(last) if accuracy else f"{ms(last)}, {significant(first / last, 2)}{TIMES}"
        names.append((y(last), f"{precision_name(precision)}  {ended}", "strong"))
    return [*parts, *_end_names(names)]


def _end_names(names: list[tuple[float, str, str]]) -> list[str]:
    """Texts beside the right end, from the top down, none on another."""
    parts, lowest = [], float("-inf")
    for height, text, style in sorted(names):
        lowest = max(height, lowest + GAP)
        parts.append(label(RIGHT + 8, lowest + 4, text, style))
    return parts


def _mark(engine: CurveEngine, across: float, value: float, y: Scale, *, accuracy: bool) -> str:
    low, high = (engine.low_ms, engine.high_ms)
    if accuracy and engine.accuracy is not None:
        low, high = engine.accuracy.low, engine.accuracy.high
    known = "accuracy not evaluated"
    if engine.accuracy is not None:
        ends = f"{percent(engine.accuracy.low)} to {percent(engine.accuracy.high)}"
        known = f"{percent(engine.accuracy.value)} ({ends}) on {engine.accuracy.n:,} images"
    text = f"{engine.name} in {runtime_name(engine.runtime)}: {ms(engine.median_ms)}; {known}"
    top, bottom = y(min(high, y.high)), y(max(low, y.low))
    halo = tag("circle", {"cx": across, "cy": y(value), "r": 13, "class": "halo"}) if engine.chosen else ""
    whisker = line(across, top, across, bottom, "whisker")
    return titled(text, halo, whisker, marker(across, y(value), engine.runtime, engine.precision, 5.5))


def _ticks(y: Scale, written: Callable[[float], str], highest: float = float("inf")) -> list[str]:
    parts = []
    for value in y.ticks(5):
        if value <= highest + 1e-9:
            parts.append(line(LEFT, y(value), RIGHT, y(value), "grid"))
            parts.append(label(LEFT - 10, y(value) + 4, written(value), "muted", "end"))
    return parts


def _limit_line(height: float, text: str) -> list[str]:
    return [line(LEFT, height, RIGHT, height, "limit"), label(LEFT + 6, height - 6, text, "limit-text")]


def _floor(curve: PruningCurve, budget: Budget) -> float | None:
    """The lowest accuracy that keeps the budget, where the curve begins with the network that it is counted from."""
    if budget.max_drop is None or curve.name != TEACHER_NAME:
        return None
    whole = _of(curve.points[0], "fp32")
    if whole is None or whole.accuracy is None:
        return None
    top = whole.accuracy.value
    return top * (1 - budget.max_drop) if budget.drop_type == "relative" else top - budget.max_drop


def _of(point: CurvePoint, precision: str) -> CurveEngine | None:
    return next((engine for engine in point.engines if engine.precision == precision), None)


def _value(engine: CurveEngine, *, accuracy: bool) -> float | None:
    if not accuracy:
        return engine.median_ms
    return None if engine.accuracy is None else engine.accuracy.value
