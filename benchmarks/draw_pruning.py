"""Draws `pruning_curve.json`: accuracy against measured latency for each way of pruning, one panel per runtime.

    python benchmarks/draw_pruning.py benchmarks/results/pruning_curve.json docs/pruning.svg

Towards the upper left is better: as accurate, and faster. Whiskers are the 95 % intervals of the medians.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from edgekd.report.svg import Scale, label, line, path, picture, rect, tag, titled

WAYS = {
    "measured-kd": ("by timed engines", "#111827"),
    "latency-kd": ("by predicted latency", "#d08b2c"),
    "macs-kd": ("by MACs, kd", "#3f9c63"),
    "macs-l2": ("by MACs, l2", "#2f6db5"),
    "torch-pruning-8-inner": ("Torch-Pruning, round_to=8, streams whole", "#0f8b8d"),
    "torch-pruning-8": ("Torch-Pruning, round_to=8", "#8a3ab0"),
    "torch-pruning": ("Torch-Pruning", "#c8453b"),
}
RUNTIMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
PANEL, GAP, LEFT, TOP, HEIGHT, LEGEND = 430.0, 60.0, 62.0, 84.0, 320.0, 26.0
STYLE = (
    ".bg{fill:#fff}.t{font:13px system-ui,Segoe UI,Helvetica,Arial,sans-serif;fill:#1d2733}.muted{fill:#66738a}"
    ".strong{font-weight:600}.grid{stroke:#e4e8ee}.axis{stroke:#8a94a6}"
    + "".join(f".{way}{{stroke:{colour};fill:none;stroke-width:2}}" for way, (_, colour) in WAYS.items())
    + "".join(f".{way}-dot{{fill:{colour}}}" for way, (_, colour) in WAYS.items())
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    summary = json.loads(arguments.result.read_text())
    arguments.out.write_text(drawing(summary) + "\n")


def drawing(summary: dict[str, Any]) -> str:
    """The SVG."""
    rows = summary["rows"]
    runtimes = [name for name in RUNTIMES if all(name in row["latency"] for row in rows)]
    width = LEFT + len(runtimes) * PANEL + (len(runtimes) - 1) * GAP + 20
    accuracies = [row["top1"] for row in rows]
    y = Scale(low=min(accuracies) - 0.01, high=max(accuracies) + 0.01, start=TOP + HEIGHT, end=TOP)
    panels = [
        _panel(rows, name, y, LEFT + number * (PANEL + GAP), first=number == 0) for number, name in enumerate(runtimes)
    ]
    described = f"top-1 accuracy against latency of pruned ResNet-56s in {' and '.join(runtimes)}"
    height = TOP + HEIGHT + 50
    drawn = picture(
        width, height, described, tag("style", {}, STYLE), rect(0, 0, width, height, "bg"), *panels, _legend()
    )
    return drawn.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)


def _panel(rows: list[dict[str, Any]], runtime: str, y: Scale, left: float, *, first: bool) -> str:
    ends = [end for row in rows for end in row["latency"][runtime]["median_95_ms"]]
    x = Scale(low=0.9 * min(ends), high=1.03 * max(ends), start=left, end=left + PANEL)
    parts = [label(left, TOP - 10, f"{RUNTIMES[runtime]}, median latency in ms", "strong")]
    for value in y.ticks(6):
        parts.append(line(left, y(value), left + PANEL, y(value), "grid"))
        if first:
            parts.append(label(left - 8, y(value) + 4, f"{100 * value:.0f} %", "muted", "end"))
    for value in x.ticks(6):
        parts.append(label(x(value), TOP + HEIGHT + 20, f"{value:.3g}", "muted", "middle"))
    parts.append(line(left, TOP + HEIGHT, left + PANEL, TOP + HEIGHT, "axis"))
    whole = next(row for row in rows if row["ratio"] is None)
    for way in WAYS:
        cuts = sorted((row for row in rows if row["way"] == way), key=lambda row: -row["ratio"])
        points = [(x(row["latency"][runtime]["p50_ms"]), y(row["top1"])) for row in [whole, *cuts]]
        parts.append(path(points, way))
        parts += [_mark(row, runtime, x, y, way) for row in cuts]
    across, height = x(whole["latency"][runtime]["p50_ms"]), y(whole["top1"])
    parts.append(tag("circle", {"cx": across, "cy": height, "r": 5}))
    parts.append(label(across - 8, height - 9, "teacher", "", "end"))
    return tag("g", {}, *parts)


def _mark(row: dict[str, Any], runtime: str, x: Scale, y: Scale, way: str) -> str:
    found = row["latency"][runtime]
    low, high = found["median_95_ms"]
    text = f"{row['engine']}: {found['p50_ms']:.2f} ms, {100 * row['top1']:.1f} %, {row['macs_m']:.0f} M MACs"
    dot = tag("circle", {"cx": x(found["p50_ms"]), "cy": y(row["top1"]), "r": 4.5, "class": f"{way}-dot"})
    return titled(text, line(x(low), y(row["top1"]), x(high), y(row["top1"]), way), dot)


def _legend() -> str:
    """Ours on one line, Torch-Pruning's on the next."""
    parts = []
    for peers in (False, True):
        across, height = LEFT, LEGEND + 20 * peers
        for way, (name, _) in WAYS.items():
            if way.startswith("torch-pruning") == peers:
                parts.append(tag("circle", {"cx": across + 6, "cy": height - 4, "r": 4.5, "class": f"{way}-dot"}))
                parts.append(label(across + 16, height, name))
                across += 36 + 7 * len(name)
    return tag("g", {}, *parts)


if __name__ == "__main__":
    main()
