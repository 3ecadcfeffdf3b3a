"""Where an engine's time goes: one bar per engine, cut into int8, float, conversions and the rest, as recorded."""

from __future__ import annotations

from collections.abc import Sequence

from edgekd.core.layers import Arithmetic
from edgekd.core.report import CandidateLatency, ProfileReport
from edgekd.core.text import ms, significant
from edgekd.report.plots.marks import precision_name, runtime_name
from edgekd.report.svg import label, picture, rect, shortened, titled

WIDTH, ROW, TOP = 1040.0, 34.0, 30.0
BAR = (262.0, 930.0)
ORDER: tuple[Arithmetic, ...] = ("int8", "float", "conversion", "other")
NAMES: dict[Arithmetic, str] = {
    "int8": "in int8",
    "float": "in float",
    "conversion": "conversions of type and layout",
    "other": "shapes and indices",
}
_LEAST_TOLD = 46.0
"""Pixels below which a part has no room for its share."""


def shares(profile: ProfileReport | None) -> str | None:
    """The drawing, at the first thread count; None where no runtime told the times of layers.

    A bar is as long as the engine's recorded time against the longest one: what low precision saves in its layers and
    gives back in conversions can be seen beside the FP32 bar.
    """
    if profile is None:
        return None
    told = [e for e in profile.entries if e.latency and e.layers and e.latency.threads == profile.threads[0]]
    told = [entry for entry in told if entry.layers and entry.layers.total_ms > 0]
    if not told:
        return None
    told.sort(key=lambda entry: (entry.runtime, entry.latency.p50_ms if entry.latency else 0.0))
    longest = max(entry.layers.total_ms for entry in told if entry.layers)
    rows = [_row(entry, TOP + ROW * index, longest) for index, entry in enumerate(told)]
    head = label(BAR[0], 14, "Recorded time of the layers; recording itself costs time", "muted")
    return picture(WIDTH, TOP + ROW * len(told) + 6, f"Shares of time of {len(told)} engines", head, *rows)


def _row(entry: CandidateLatency, top: float, longest: float) -> str:
    layers = entry.layers
    if layers is None:
        return ""
    middle, parts, x = top + ROW / 2, [], BAR[0]
    scale = (BAR[1] - BAR[0]) * layers.total_ms / longest
    for kind in ORDER:
        share = layers.share_by_arithmetic.get(kind, 0.0)
        width = scale * share
        parts.append(rect(x, middle - 9, width, 18, f"share {kind}"))
        if width >= _LEAST_TOLD:
            parts.append(label(x + width / 2, middle + 4, f"{share:.0%}", "small", "middle"))
        x += width
    said = ", ".join(f"{share:.0%} {NAMES[kind]}" for kind, share in _in_order(layers.share_by_arithmetic))
    text = f"{entry.candidate} in {runtime_name(entry.runtime)}: {ms(layers.total_ms)} recorded; {said}"
    return titled(
        text,
        label(10, middle - 2, shortened(entry.candidate, 34), ""),
        label(10, middle + 12, f"{precision_name(entry.precision)} · {runtime_name(entry.runtime)}", "muted small"),
        *parts,
        label(x + 8, middle + 4, f"{significant(layers.total_ms)} ms", "muted"),
    )


def _in_order(found: dict[Arithmetic, float]) -> Sequence[tuple[Arithmetic, float]]:
    return [(kind, found[kind]) for kind in ORDER if found.get(kind)]
