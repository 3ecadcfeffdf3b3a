"""Score against cost of every student that a search scored, with the front and the picks."""

from __future__ import annotations

from edgekd.core.text import significant
from edgekd.report.data import FoundStudents, StudentPoint
from edgekd.report.plots.marks import marker
from edgekd.report.svg import Scale, label, line, path, picture, tag, titled

WIDTH, HEIGHT = 1040.0, 360.0
LEFT, RIGHT, TOP, BOTTOM = 64.0, 1016.0, 22.0, 306.0


def students(found: FoundStudents | None) -> str | None:
    """The drawing, or None where fewer than two students were scored."""
    if found is None or len(found.students) < 2:
        return None
    x, y = _scales(found)
    best = sorted((student for student in found.students if student.front), key=lambda student: student.cost)
    layers = [
        _axes(x, y, found),
        _staircase(best, x, y),
        *(_mark(student, x, y, found) for student in sorted(found.students, key=lambda s: (s.pick > 0, s.front))),
        *(_name(student, x, y) for student in found.picks),
    ]
    return picture(WIDTH, HEIGHT, f"Score against cost of {len(found.students)} students", *layers)


def _scales(found: FoundStudents) -> tuple[Scale, Scale]:
    costs = [student.cost for student in found.students]
    scores = [student.score for student in found.students]
    pad = max(0.06 * (max(scores) - min(scores)), 1e-6)
    x = Scale(low=min(costs) / 1.1, high=max(costs) * 1.1, start=LEFT, end=RIGHT, log=True)
    return x, Scale(low=min(scores) - pad, high=max(scores) + pad, start=BOTTOM, end=TOP)


def _axes(x: Scale, y: Scale, found: FoundStudents) -> str:
    parts = []
    for value in x.ticks(8):
        parts.append(line(x(value), TOP, x(value), BOTTOM, "grid"))
        parts.append(label(x(value), BOTTOM + 20, significant(value, 2), "muted", "middle"))
    for value in y.ticks(5):
        parts.append(line(LEFT, y(value), RIGHT, y(value), "grid"))
        parts.append(label(LEFT - 10, y(value) + 4, f"{value:.3g}", "muted", "end"))
    what = "Predicted latency at batch 1, ms" if found.predicted else "Multiply-accumulates, millions"
    parts.append(line(LEFT, BOTTOM, RIGHT, BOTTOM, "axis"))
    parts.append(label(RIGHT, BOTTOM + 44, f"{what}, log scale; left is cheaper", "muted", "end"))
    parts.append(label(LEFT - 48, TOP - 8, f"Score by {found.ranking}", "muted"))
    return tag("g", {}, *parts)


def _staircase(best: list[StudentPoint], x: Scale, y: Scale) -> str:
    """The best score that each cost can buy; students of the front that only save parameters lie below it."""
    corners: list[tuple[float, float]] = []
    top = float("-inf")
    for student in best:
        if student.score > top:
            if corners:
                corners.append((x(student.cost), corners[-1][1]))
            corners.append((x(student.cost), y(student.score)))
            top = student.score
    return path([*corners, (RIGHT, corners[-1][1])], "front") if corners else ""


def _mark(student: StudentPoint, x: Scale, y: Scale, found: FoundStudents) -> str:
    across, up = x(student.cost), y(student.score)
    unit = "ms" if found.predicted else "M multiply-accumulates"
    text = (
        f"{student.text}: {significant(student.cost)} {unit}, {significant(student.params_m)} M parameters, "
        f"score {significant(student.score)}"
    )
    halo = tag("circle", {"cx": across, "cy": up, "r": 13, "class": "halo"}) if student.pick else ""
    colour, size = ("fp32", 5.0) if student.front else ("any", 3.5)
    return titled(text, halo, marker(across, up, "", colour, size))


def _name(student: StudentPoint, x: Scale, y: Scale) -> str:
    left = x(student.cost) > (LEFT + RIGHT) / 2
    return label(
        x(student.cost) + (-18 if left else 18), y(student.score) + 4, f"pick {student.pick}", "strong",
        "end" if left else "start",
    )  # fmt: skip
