"""The compression graph as it ran, from the teacher to the verdict, with the deployed engine's way marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgekd.core.text import duration
from edgekd.report.data import GraphNode, ReportData
from edgekd.report.plots.layout import Block, Spot, placed, reduced
from edgekd.report.signs import TIMES
from edgekd.report.svg import label, picture, rect, shortened, tag, titled

BOX_W, BOX_H, STEP_X, STEP_Y, PAD = 118.0, 38.0, 142.0, 48.0, 6.0
NAME_LENGTH, NOTE_LENGTH = 16, 19
FOLDED = "evaluate"
"""Nodes of this stage that measure the candidates are drawn as one box: there is one per engine."""
LATE = frozenset({"evaluate", "profile", "select", "gate"})
"""Stages that take from many lanes."""
FAMILIES = {
    "search": "find",
    "pick": "find",
    "latency-model": "measure",
    "latency-table": "measure",
    "distill": "train",
    "quantized-distill": "train",
    "differentiable-quantize": "train",
    "prune": "train",
    "calibration": "data",
    "synthetic-samples": "data",
    "export": "engine",
    "fp16": "engine",
    "quantize": "engine",
    "int8-fp16": "engine",
    "qat": "train",
    "codebook": "engine",
    "build": "engine",
    "convert": "engine",
    "profile": "measure",
    "evaluate": "measure",
    "select": "judge",
    "gate": "judge",
}


@dataclass(frozen=True, kw_only=True)
class _Box(Block):
    """One drawn box: a node, an input of the graph, or several nodes folded into one.

    Attributes:
        title: First line.
        note: Second line.
        tooltip: Everything.
        reused: Drawn dashed.
    """

    title: str
    note: str
    tooltip: str
    reused: bool = False


def graph_picture(data: ReportData) -> str | None:
    """The drawing, or None without nodes."""
    if not data.graph:
        return None
    boxes = _boxes(data.graph)
    spots = placed(boxes)
    way = {box.name for box in boxes} & way_to_choice(data)
    main = {(box.inputs[0], box.name) for box in boxes if box.inputs and box.stage not in LATE}
    edges = [_edge(spots[a], spots[b], on_way=a in way and b in way, early=(a, b) in main) for a, b in reduced(boxes)]
    drawn = [_drawn(box, spots[box.name], on_way=box.name in way) for box in boxes]
    width = max(spot.column for spot in spots.values()) * STEP_X + BOX_W + 2 * PAD
    height = max(spot.row for spot in spots.values()) * STEP_Y + BOX_H + 2 * PAD
    # Edges of the way are drawn last, over the others.
    layers = [*sorted(edges, key=lambda edge: "on-way" in edge), *drawn]
    svg = picture(width, height, f"The compression graph: {len(data.graph)} nodes", *layers, style="plot graph")
    return tag("div", {"style": f"min-width:{0.72 * width:.0f}px;max-width:{1.1 * width:.0f}px"}, svg)


def way_to_choice(data: ReportData) -> set[str]:
    """The nodes that the deployed engine was made by, and those that measured and judged it."""
    if data.choice is None:
        return set()
    inputs = {node.name: node.inputs for node in data.graph}
    way: set[str] = set()
    waiting = [data.choice.candidate]
    while waiting:
        name = waiting.pop()
        if name not in way:
            way.add(name)
            waiting += inputs.get(name, ())
    judges = {node.name for node in data.graph if node.stage in ("select", "gate")}
    measuring = {data.choice.candidate, *judges}
    way |= judges | {n.name for n in data.graph if n.stage in ("profile", FOLDED) and measuring & set(n.inputs)}
    # The box of all candidates' evaluations goes by the name of its first node.
    group = [node.name for node in _candidate_evaluations(data.graph)]
    return way | set(group[:1]) if way & set(group) else way


def _candidate_evaluations(nodes: Sequence[GraphNode]) -> list[GraphNode]:
    """The evaluate nodes that a choice is made by."""
    consumed = {source for node in nodes if node.stage == "select" for source in node.inputs}
    return [node for node in nodes if node.stage == FOLDED and node.name in consumed]


def _boxes(nodes: Sequence[GraphNode]) -> list[_Box]:
    """The graph's inputs, then its nodes in order; evaluate nodes of the candidates become one box."""
    sources = dict.fromkeys(source for node in nodes for source in node.inputs if source.startswith("@"))
    given = [
        _Box(name=s, stage="input", inputs=(), title=s.removeprefix("@"), note="given", tooltip="given")
        for s in sources
    ]
    group = _candidate_evaluations(nodes)
    alias = {node.name: group[0].name for node in group} if len(group) > 1 else {}
    boxes = list(given)
    for node in nodes:
        if node.name not in alias:
            boxes.append(_box(node, alias))
        elif node is group[-1]:  # in the place of the last one, so that all its inputs come before it
            boxes.append(_folded(group))
    return boxes


def _box(node: GraphNode, alias: Mapping[str, str]) -> _Box:
    reused = node.action == "reuse"
    took = "reused" if reused else "" if node.seconds is None else duration(node.seconds)
    note = " · ".join(part for part in ("" if node.stage == node.name else node.stage, took) if part)
    why = f" ({'; '.join(node.reasons)})" if node.reasons else ""
    return _Box(
        name=node.name,
        stage=node.stage,
        inputs=tuple(dict.fromkeys(alias.get(source, source) for source in node.inputs)),
        title=_title(node),
        note=note,
        tooltip=f"{node.name}: {node.stage}, {took}{why}",
        reused=reused,
    )


def _folded(group: Sequence[GraphNode]) -> _Box:
    seconds = sum(node.seconds or 0.0 for node in group if node.action != "reuse")
    reused = all(node.action == "reuse" for node in group)
    return _Box(
        name=group[0].name,
        stage=FOLDED,
        inputs=tuple(dict.fromkeys(source for node in group for source in node.inputs)),
        title=f"{FOLDED} {TIMES} {len(group)}",
        note="reused" if reused else duration(seconds),
        tooltip=", ".join(node.name for node in group),
        reused=reused,
    )


def _title(node: GraphNode) -> str:
    """The node's name; an engine's without the words that it shares with its source, which stands beside it."""
    if FAMILIES.get(node.stage) != "engine" or not node.inputs:
        return node.name
    own, source = node.name.split("-"), node.inputs[0].removeprefix("@").split("-")
    shared = 0
    while shared < min(len(own) - 1, len(source)) and own[shared] == source[shared]:
        shared += 1
    return "-".join(own[shared:])


def _edge(start: Spot, end: Spot, *, on_way: bool, early: bool) -> str:
    """A curve that changes rows in the first gap (`early`), and so keeps to its target's lane, or in the last one."""
    x1, y1 = PAD + start.column * STEP_X + BOX_W, PAD + start.row * STEP_Y + BOX_H / 2
    x2, y2 = PAD + end.column * STEP_X, PAD + end.row * STEP_Y + BOX_H / 2
    gap = STEP_X - BOX_W
    left, right = (x1, x1 + gap) if early else (x2 - gap, x2)
    bend = (left + right) / 2
    curve = f"M{x1:.1f} {y1:.1f}H{left:.1f}C{bend:.1f} {y1:.1f} {bend:.1f} {y2:.1f} {right:.1f} {y2:.1f}H{x2:.1f}"
    return tag("path", {"class": "edge on-way" if on_way else "edge", "d": curve})


def _drawn(box: _Box, spot: Spot, *, on_way: bool) -> str:
    x, y = PAD + spot.column * STEP_X, PAD + spot.row * STEP_Y
    style = " ".join(["box", *(["on-way"] if on_way else []), *(["reused"] if box.reused else [])])
    return titled(
        box.tooltip,
        rect(x, y, BOX_W, BOX_H, style, 7),
        rect(x + 7, y + 9, 3.5, BOX_H - 18, f"family {FAMILIES.get(box.stage, 'input')}", 1.75),
        label(x + 16, y + 16, shortened(box.title, NAME_LENGTH), "strong" if on_way else ""),
        label(x + 16, y + 30, shortened(box.note, NOTE_LENGTH), "muted small"),
    )
