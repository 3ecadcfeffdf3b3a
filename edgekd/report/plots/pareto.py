"""Latency against accuracy: every engine as a point, the limits as a region, and the front of the best trade-offs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from edgekd.core.report import Budget, Evaluation, Metric
from edgekd.core.text import ms, percent, significant
from edgekd.report.data import ReportData
from edgekd.report.plots.marks import marker, metric_name, precision_name, runtime_name
from edgekd.report.svg import Scale, label, line, path, picture, rect, tag, text_width, titled

WIDTH, HEIGHT = 1040.0, 440.0
LEFT, RIGHT, TOP, BOTTOM = 64.0, 1016.0, 22.0, 386.0
Area: TypeAlias = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One engine at the judged thread count."""

    name: str
    runtime: str
    precision: str
    latency_ms: float
    low_ms: float
    high_ms: float
    accuracy: Evaluation
    chosen: bool
    reference: bool


def points_from_report(data: ReportData) -> list[Point]:
    """All engines that have both a latency and an accuracy on the `select` split."""
    points = []
    for entry in data.profile.entries if data.profile is not None else ():
        latency = entry.latency
        if latency is None or data.profile is None or latency.threads != data.profile.threads[0]:
            continue
        evaluated_in = entry.runtime if data.profile.measured else None
        accuracy = data.evaluation(entry.candidate, "select", evaluated_in)
        if accuracy is None:
            continue
        points.append(
            Point(
                name=entry.candidate,
                runtime=entry.runtime,
                precision=entry.precision,
                latency_ms=latency.p50_ms,
                low_ms=latency.median_low_ms,
                high_ms=latency.median_high_ms,
                accuracy=accuracy,
                chosen=is_chosen(data, entry.candidate, entry.runtime),
                reference=entry.candidate == data.reference,
            )
        )
    return points


def is_chosen(data: ReportData, candidate: str, runtime: str) -> bool:
    """Whether this engine is the one that is deployed."""
    choice = data.choice
    if choice is None or choice.candidate != candidate:
        return False
    return choice.runtime == runtime or data.profile is None or not data.profile.measured


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other point beats in both latency and accuracy, fastest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.latency_ms, -p.accuracy.value)):
        if not best or point.accuracy.value > best[-1].accuracy.value:
            best.append(point)
    return best


def pareto(data: ReportData) -> str | None:
    """The drawing, or None when fewer than two engines have both numbers."""
    points = points_from_report(data)
    if len(points) < 2:
        return None
    budget = data.asked.budget
    floor = _floor(data, points, budget)
    x, y = _scales(points, budget, floor)
    best = front(points)
    layers = [
        _axes(x, y, points[0].accuracy.metric),
        _limits(x, y, budget, floor),
        _staircase(best, x, y),
        *(_whiskers(point, x, y) for point in points if point.chosen),
        *(_mark(point, x, y) for point in sorted(points, key=lambda p: p.chosen)),
        _names(points, best, x, y, floor),
    ]
    text = f"{metric_name(points[0].accuracy.metric)} against latency of {len(points)} engines"
    return picture(WIDTH, HEIGHT, text, *layers)


def _floor(data: ReportData, points: Sequence[Point], budget: Budget) -> float | None:
    """The lowest accuracy that keeps the budget, on the split that is drawn."""
    if budget.max_drop is None:
        return None
    values = [point.accuracy for point in points if point.reference]
    if not values and points[0].accuracy.metric == "top1":
        return None
    top = max((value.value for value in values), default=1.0)
    return top * (1 - budget.max_drop) if budget.drop_type == "relative" else top - budget.max_drop


def _scales(points: Sequence[Point], budget: Budget, floor: float | None) -> tuple[Scale, Scale]:
    times = [point.latency_ms for point in points] + ([budget.max_latency_ms] if budget.max_latency_ms else [])
    values = [point.accuracy.value for point in points] + ([floor] if floor is not None else [])
    values += [end for p in points if p.chosen for end in (p.accuracy.low, p.accuracy.high)]
    low, high = min(values), min(max(values), 1.0)
    pad = max(0.08 * (high - low), 0.004)
    x = Scale(low=min(times) / 1.35, high=max(times) * 1.35, start=LEFT, end=RIGHT, log=True)
    return x, Scale(low=low - pad, high=high + pad, start=BOTTOM, end=TOP)


def _axes(x: Scale, y: Scale, metric: Metric) -> str:
    parts = []
    for value in x.ticks(8):
        parts += [
            line(x(value), TOP, x(value), BOTTOM, "grid"),
            label(x(value), BOTTOM + 20, significant(value, 2), "muted", "middle"),
        ]
    for value in y.ticks(6):
        if value <= 1.0 + 1e-9:
            parts += [line(LEFT, y(value), RIGHT, y(value), "grid")]
            parts += [label(LEFT - 10, y(value) + 4, f"{100 * value:.3g} %", "muted", "end")]
    parts += [line(LEFT, BOTTOM, RIGHT, BOTTOM, "axis")]
    parts += [label(RIGHT, BOTTOM + 44, "Median latency at batch 1, ms, log scale; left is faster", "muted", "end")]
    parts += [label(LEFT - 48, TOP - 8, metric_name(metric), "muted")]
    return tag("g", {}, *parts)


def _limits(x: Scale, y: Scale, budget: Budget, floor: float | None) -> str:
    """The region that keeps the budget, and the lines around it."""
    right = x(budget.max_latency_ms) if budget.max_latency_ms else RIGHT
    bottom = y(floor) if floor is not None else BOTTOM
    if budget.max_latency_ms is None and floor is None:
        return ""
    parts = [rect(LEFT, TOP, right - LEFT, bottom - TOP, "within")]
    if budget.max_latency_ms is not None:
        parts.append(line(right, TOP, right, BOTTOM, "limit"))
        parts.append(label(right - 6, BOTTOM - 8, f"limit {budget.max_latency_ms:g} ms", "limit-text", "end"))
    if floor is not None:
        parts.append(line(LEFT, bottom, RIGHT, bottom, "limit"))
        parts.append(label(RIGHT - 6, bottom + 16, f"lowest allowed: {percent(floor)}", "limit-text", "end"))
    return tag("g", {}, *parts)


def _staircase(best: Sequence[Point], x: Scale, y: Scale) -> str:
    """The front: what accuracy the latency on the axis can buy."""
    corners: list[tuple[float, float]] = []
    for point in best:
        if corners:
            corners.append((x(point.latency_ms), corners[-1][1]))
        corners.append((x(point.latency_ms), y(point.accuracy.value)))
    return path([*corners, (RIGHT, corners[-1][1])], "front")


def _whiskers(point: Point, x: Scale, y: Scale) -> str:
    """95 % intervals of both numbers, cut at the frame."""
    low, high = max(point.accuracy.low, y.low), min(point.accuracy.high, y.high)
    across, up = x(point.latency_ms), y(point.accuracy.value)
    left, right = max(point.low_ms, x.low), min(point.high_ms, x.high)
    return line(across, y(low), across, y(high), "whisker") + line(x(left), up, x(right), up, "whisker")


def _mark(point: Point, x: Scale, y: Scale) -> str:
    across, up = x(point.latency_ms), y(point.accuracy.value)
    halo = tag("circle", {"cx": across, "cy": up, "r": 15, "class": "halo"}) if point.chosen else ""
    text = (
        f"{point.name}, {precision_name(point.precision)} in {runtime_name(point.runtime)}: {ms(point.latency_ms)}, "
        f"{percent(point.accuracy.value)} ({percent(point.accuracy.low)} to {percent(point.accuracy.high)})"
    )
    return titled(text, halo, marker(across, up, point.runtime, point.precision, 7 if point.chosen else 5.5))


def _names(points: Sequence[Point], best: Sequence[Point], x: Scale, y: Scale, floor: float | None) -> str:
    """Names beside the points that matter most, as far as they find room; the chosen one is always named."""
    rank = sorted(points, key=lambda p: (not p.chosen, not p.reference, p not in best, p.latency_ms))
    taken = [_around(x(point.latency_ms), y(point.accuracy.value)) for point in points]
    if floor is not None:
        taken.append((LEFT, y(floor) - 1, RIGHT, y(floor) + 1))
    named: set[str] = set()
    parts = []
    for point in rank:
        if point.name in named:
            continue
        places = _places(point, x, y)
        free = [place for place in places if not any(_overlap(place[3], other) for other in taken)]
        for across, up, anchor, box in free[:1] or places[: 1 if point.chosen else 0]:
            parts.append(label(across, up, point.name, "strong" if point.chosen else "", anchor))
            taken.append(box)
            named.add(point.name)
    return tag("g", {"class": "names"}, *parts)


def _places(point: Point, x: Scale, y: Scale) -> list[tuple[float, float, str, Area]]:
    """(x, y, anchor, area) of where a point's name may stand inside the frame, best first."""
    gap = 22.0 if point.chosen else 11.0
    above, below = -gap, gap + 10
    offsets = [
        *((gap, 4.0, "start"), (-gap, 4.0, "end"), (0.0, above, "middle"), (0.0, below, "middle")),
        *((-8.0, above, "start"), (-8.0, below, "start"), (8.0, above, "end"), (8.0, below, "end")),
    ]
    width, found = text_width(point.name), []
    for dx, dy, anchor in offsets:
        across, up = x(point.latency_ms) + dx, y(point.accuracy.value) + dy
        left = across - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
        if left >= LEFT and left + width <= RIGHT and up - 11 >= TOP and up + 3 <= BOTTOM:
            found.append((across, up, anchor, (left, up - 11, left + width, up + 3)))
    return found


def _around(across: float, up: float) -> Area:
    return across - 7, up - 7, across + 7, up + 7


def _overlap(a: Area, b: Area) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
