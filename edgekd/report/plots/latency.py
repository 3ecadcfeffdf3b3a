"""How long every engine takes, and how much that varies: position on one shared axis, shape relative to its median."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgekd.core.report import CandidateLatency, LatencyReport
from edgekd.core.text import ms, significant
from edgekd.report.data import ReportData
from edgekd.report.plots.marks import marker, precision_name, runtime_name
from edgekd.report.plots.pareto import is_chosen
from edgekd.report.signs import BEYOND, MINUS
from edgekd.report.svg import Scale, label, line, path, picture, rect, shortened, tag, titled

WIDTH, ROW, TOP = 1040.0, 38.0, 58.0
NAMES, WHERE, SHAPE, NUMBERS = 0.0, (262.0, 572.0), (606.0, 866.0), (972.0, 1030.0)


def latencies(data: ReportData) -> str | None:
    """The drawing, fastest engine first; None when nothing was measured."""
    if data.profile is None:
        return None
    timed = [(entry, entry.latency) for entry in data.profile.entries if entry.latency and entry.latency.samples_ms]
    if not timed:
        return None
    timed.sort(key=lambda pair: pair[1].p50_ms)
    limit = data.asked.budget.max_latency_ms
    ends = [value for _, latency in timed for value in (latency.p50_ms, latency.p99_ms)] + ([limit] if limit else [])
    where = Scale(low=min(ends) / 1.15, high=max(ends) * 1.1, start=WHERE[0], end=WHERE[1], log=True)
    shape = _shape_scale([latency for _, latency in timed])
    bottom = TOP + ROW * len(timed)
    many_threads = len(data.profile.threads) > 1
    layers = [_axes(where, shape, bottom), _limit(where, limit, bottom)]
    for index, (entry, latency) in enumerate(timed):
        first = latency.threads == data.profile.threads[0]
        chosen = first and is_chosen(data, entry.candidate, entry.runtime)
        layers.append(_row(entry, latency, TOP + ROW * index, where, shape, chosen=chosen, threads=many_threads))
    return picture(WIDTH, bottom + 34, f"Latency distributions of {len(timed)} engines", *layers)


def _shape_scale(latencies: Sequence[LatencyReport]) -> Scale:
    """Multiples of the median that show nine tenths of the upper half of the least steady engine."""
    widest = max(latency.p95_ms / latency.p50_ms for latency in latencies) - 1
    reach = min(max(1.6 * widest, 0.1), 1.0)
    return Scale(low=1 - 0.35 * reach, high=1 + reach, start=SHAPE[0], end=SHAPE[1])


def _axes(where: Scale, shape: Scale, bottom: float) -> str:
    parts = [label(WHERE[0], 14, "Where: median, on to p90 and p99; ms, log", "muted")]
    parts.append(label(SHAPE[0], 14, "Shape: relative to its own median", "muted"))
    parts += [label(x, 14, text, "muted", "end") for x, text in zip(NUMBERS, ("p50", "p99"), strict=True)]
    for value in where.ticks(6):
        parts.append(line(where(value), TOP - 14, where(value), bottom, "grid"))
        parts.append(label(where(value), bottom + 20, significant(value, 2), "muted", "middle"))
    for value in shape.ticks(4):
        parts.append(line(shape(value), TOP - 14, shape(value), bottom, "axis" if abs(value - 1) < 1e-9 else "grid"))
        text = "median" if abs(value - 1) < 1e-9 else f"{100 * (value - 1):+.0f} %".replace("-", MINUS)
        parts.append(label(shape(value), bottom + 20, text, "muted", "middle"))
    return tag("g", {}, *parts)


def _limit(where: Scale, limit: float | None, bottom: float) -> str:
    if limit is None:
        return ""
    text = label(where(limit), TOP - 20, f"limit {limit:g} ms", "limit-text", "middle")
    return line(where(limit), TOP - 14, where(limit), bottom, "limit") + text


def _row(
    entry: CandidateLatency,
    latency: LatencyReport,
    top: float,
    where: Scale,
    shape: Scale,
    *,
    chosen: bool,
    threads: bool,
) -> str:
    middle, base = top + ROW / 2, top + ROW - 6
    how = f"{precision_name(entry.precision)} · {runtime_name(entry.runtime)}"
    if threads:
        how += f" · {latency.threads} thread{'s' if latency.threads > 1 else ''}"
    how += " · chosen" if chosen else ""
    text = (
        f"{entry.candidate}, {how}: p50 {ms(latency.p50_ms)} ({significant(latency.median_low_ms)} to "
        f"{significant(latency.median_high_ms)}), p90 {ms(latency.p90_ms)}, p95 {ms(latency.p95_ms)}, "
        f"p99 {ms(latency.p99_ms)}, {latency.n} runs"
    )
    name = shortened(entry.candidate, 34)
    return titled(
        text,
        rect(NAMES, top + 1, WIDTH, ROW - 2, "row chosen" if chosen else "row", 6),
        label(NAMES + 10, middle - 3, name, "strong" if chosen else ""),
        label(NAMES + 10, middle + 13, how, "muted small"),
        line(where(latency.p50_ms), middle, where(latency.p99_ms), middle, "reach-p99"),
        line(where(latency.p50_ms), middle, where(latency.p90_ms), middle, "reach-p90"),
        marker(where(latency.p50_ms), middle, entry.runtime, entry.precision),
        _density(latency, shape, base, entry.precision),
        label(NUMBERS[0], middle + 5, significant(latency.p50_ms), "strong" if chosen else "", "end"),
        label(NUMBERS[1], middle + 5, significant(latency.p99_ms), "muted", "end"),
    )


def _density(latency: LatencyReport, shape: Scale, base: float, precision: str) -> str:
    """The distribution of the kept samples as an area over the row's base, cut at the panel's ends."""
    relative = [value / latency.p50_ms for value in latency.samples_ms]
    grid = np.linspace(shape.low, shape.high, 160)
    heights = density(relative, grid)
    peak = max(float(heights.max()), 1e-9)
    seen = [(shape(float(at)), float(h) / peak) for at, h in zip(grid, heights, strict=True) if h > 0.004 * peak]
    outline = [(x, base - (ROW - 12) * height) for x, height in seen]
    area = path([(seen[0][0], base), *outline, (seen[-1][0], base)], f"area {precision}", closed=True)
    area = line(SHAPE[0], base, SHAPE[1], base, "grid") + area
    beyond = sum(value > shape.high for value in relative) / len(relative)
    tail = label(SHAPE[1] + 6, base, f"{100 * beyond:.1f} % {BEYOND}", "muted small") if beyond >= 0.001 else ""
    return area + tail


def density(values: Sequence[float], grid: np.ndarray) -> np.ndarray:
    """Gaussian kernel density of `values` at `grid`.

    The bandwidth is Silverman's rule with the smaller of standard deviation and interquartile range (Density
    Estimation, 1986, equation 3.31), so that a few slow outliers do not smear the bulk; it is never narrower than a
    pixel or two.
    """
    data = np.asarray(values, dtype=np.float64)
    quartiles = np.percentile(data, (25, 75))
    spread = min(float(data.std()), float(quartiles[1] - quartiles[0]) / 1.34)
    width = max(0.9 * spread * len(data) ** -0.2, 0.003)
    distance = (grid[:, None] - data[None, :]) / width
    found: np.ndarray = np.exp(-0.5 * distance**2).sum(axis=1) / (len(data) * width * math.sqrt(2 * math.pi))
    return found
