"""Latency over time: one panel per device and subject, a mark per verdict, as a picture or a page that needs nothing.

Medians of different devices never share an axis. Entries stand at equal distances in the order of the file: a history
is read commit by commit, and nights without commits would tear it apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgekd.core.blobs import disk_errors
from edgekd.core.history import HistoryEntry
from edgekd.core.report import Status
from edgekd.core.text import significant
from edgekd.errors import UserError
from edgekd.report.svg import Scale, label, line, path, picture, rect, shortened, tag, text_width, titled

WIDTH, PANEL, GAP = 1040.0, 230.0, 34.0
PLOT, TOP, BOTTOM = (64.0, 1024.0), 52.0, 26.0
LABELS = 12
"""Labels along an axis, at most."""
STYLE = """\
.history { background: #fff; }
.history .t { fill: #16181d; font: 12px system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif; }
.history .muted { fill: #6b7280; } .history .strong { font-weight: 650; }
.history .grid { stroke: #eceef1; } .history .limit { stroke: #b42318; stroke-dasharray: 4 4; }
.history .limit-text { fill: #b42318; font-size: 11px; }
.history .band { fill: #2f55d4; opacity: .13; } .history .median { fill: none; stroke: #2f55d4; stroke-width: 1.6; }
.history .pass { fill: #0b7a4b; } .history .fail { fill: #b42318; }
.history .inconclusive { fill: #fff; stroke: #93610a; stroke-width: 2; }
.history .predicted { fill: #fff; stroke: #6b7280; stroke-width: 1.5; stroke-dasharray: 2 2; }
"""
_CLASSES: dict[Status, str] = {"PASS": "pass", "FAIL": "fail", "INCONCLUSIVE": "inconclusive"}


def history_picture(entries: Sequence[HistoryEntry]) -> str:
    """The drawing as an SVG that stands alone.

    Raises:
        UserError: No entry has a latency.
    """
    panels: dict[tuple[str, str], list[HistoryEntry]] = {}
    for entry in entries:
        if entry.p50_ms is not None:
            panels.setdefault((entry.subject, entry.device), []).append(entry)
    if not panels:
        raise UserError("There is nothing to draw: no entry of the history has a latency.")
    height = len(panels) * (PANEL + GAP) - GAP + 8
    drawn = [
        tag("g", {"transform": f"translate(0 {index * (PANEL + GAP):g})"}, _panel(subject, device, found))
        for index, ((subject, device), found) in enumerate(panels.items())
    ]
    svg = picture(WIDTH, height, "Latency over time", tag("style", {}, STYLE), *drawn, style="history")
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)


def write_history_plot(entries: Sequence[HistoryEntry], file: Path) -> None:
    """Writes the drawing: `.svg` as it is, `.html` in a page.

    Raises:
        UserError: Another ending, nothing to draw, or a file that cannot be written.
    """
    if file.suffix not in (".svg", ".html"):
        raise UserError(f"{file}: expected a name that ends in .svg or .html.", hint="--plot history.svg")
    text = history_picture(entries)
    if file.suffix == ".html":
        text = (
            '<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>Latency over time</title>'
            f'<body style="margin: 24px auto; max-width: 1040px">{text}</body></html>\n'
        )
    with disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


def _panel(subject: str, device: str, entries: Sequence[HistoryEntry]) -> str:
    lows, highs = [_low(e) for e in entries], [_high(e) for e in entries]
    limits = [e.limit_ms for e in entries if e.limit_ms is not None]
    # A limit far above all medians would press them flat; it is then only written down.
    top = max([*highs, *(limit for limit in limits if limit < 1.6 * max(highs))])
    spread = max(top - min(lows), 0.02 * top)
    y = Scale(low=max(min(lows) - 0.15 * spread, 0), high=top + 0.15 * spread, start=PANEL - BOTTOM, end=TOP)
    x = Scale(low=-0.5, high=max(len(entries) - 0.5, 0.5), start=PLOT[0], end=PLOT[1])
    parts = [
        _key(entries),
        label(0, 16, shortened(subject, 90), "strong"),
        label(0, 33, shortened(f"median in ms with its 95 % interval; {device}", 150), "muted"),
    ]
    for value in y.ticks(5):
        parts.append(line(PLOT[0], y(value), PLOT[1], y(value), "grid"))
        parts.append(label(PLOT[0] - 8, y(value) + 4, significant(value), "muted", "end"))
    parts += [_limits(entries, x, y), _band(entries, x, y)]
    parts += [_mark(entry, x(index), y) for index, entry in enumerate(entries)]
    step = -(-len(entries) // LABELS)
    for index in range(0, len(entries), step):
        name = shortened(entries[index].label or entries[index].time[:10], 12)
        parts.append(label(x(index), PANEL - 6, name, "muted", "middle"))
    return "".join(parts)


def _limits(entries: Sequence[HistoryEntry], x: Scale, y: Scale) -> str:
    parts, written = [], None
    for index, entry in enumerate(entries):
        limit = entry.limit_ms
        if limit is None or limit > y.high:
            continue
        parts.append(line(x(index - 0.5), y(limit), x(index + 0.5), y(limit), "limit"))
        if limit != written:
            parts.append(label(x(index - 0.5) + 4, y(limit) - 5, f"limit {limit:g} ms", "limit-text"))
        written = limit
    return "".join(parts)


def _band(entries: Sequence[HistoryEntry], x: Scale, y: Scale) -> str:
    """Intervals and medians of what was measured; predictions are no part of the curve."""
    measured = [(x(index), entry) for index, entry in enumerate(entries) if entry.origin == "measured"]
    if len(measured) < 2:
        return "".join(rect(at - 3, y(_high(e)), 6, y(_low(e)) - y(_high(e)), "band") for at, e in measured)
    lower = [(at, y(_low(entry))) for at, entry in measured]
    upper = [(at, y(_high(entry))) for at, entry in measured]
    middles = [(at, y(_median(entry))) for at, entry in measured]
    return path([*lower, *reversed(upper)], "band", closed=True) + path(middles, "median")


def _mark(entry: HistoryEntry, x: float, y: Scale) -> str:
    predicted = entry.origin == "predicted"
    how = " predicted, not measured" if predicted else ""
    text = f"{entry.time} {entry.label} {entry.status}: {significant(_median(entry))} ms{how}. {entry.reason}"
    return titled(text, _sign(x, y(_median(entry)), "predicted" if predicted else _CLASSES[entry.status]))


def _sign(x: float, y: float, style: str) -> str:
    """A disc for a measurement, a dashed square for a prediction: the two are never mistaken for each other."""
    if style == "predicted":
        return tag("rect", {"x": x - 5, "y": y - 5, "width": 10.0, "height": 10.0, "class": style})
    return tag("circle", {"cx": x, "cy": y, "r": 5.0, "class": style})


def _key(entries: Sequence[HistoryEntry]) -> str:
    """What the marks mean, those that occur."""
    found = [name.lower() for name in _CLASSES if any(e.status == name and e.origin == "measured" for e in entries)]
    found += ["predicted"] if any(e.origin == "predicted" for e in entries) else []
    parts, x = [], PLOT[1]
    for name in reversed(found):
        x -= 8 + text_width(name)
        parts += [label(x, 16, name, "muted"), _sign(x - 10, 12, name)]
        x -= 26
    return "".join(parts)


def _median(entry: HistoryEntry) -> float:
    if entry.p50_ms is None:
        raise ValueError("entries without a latency are not drawn")
    return entry.p50_ms


def _low(entry: HistoryEntry) -> float:
    return _median(entry) if entry.low_ms is None else entry.low_ms


def _high(entry: HistoryEntry) -> float:
    return _median(entry) if entry.high_ms is None else entry.high_ms
