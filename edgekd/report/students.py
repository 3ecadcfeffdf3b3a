"""The table of searched students, as the page prints it."""

from __future__ import annotations

from dataclasses import dataclass

from edgekd.core.text import significant
from edgekd.report.data import FoundStudents


@dataclass(frozen=True, kw_only=True)
class StudentRow:
    """One pick."""

    name: str
    text: str
    params: str
    macs: str
    latency: str
    score: str
    reason: str


def student_rows(found: FoundStudents | None) -> list[StudentRow]:
    """The picks, best first."""
    return [
        StudentRow(
            name=f"Pick {student.pick}",
            text=student.text,
            params=significant(student.params_m),
            macs=significant(student.macs_m),
            latency=significant(student.cost) if found is not None and found.predicted else "",
            score=significant(student.score) + (f" ± {significant(student.spread, 2)}" if student.spread else ""),
            reason=student.reason,
        )
        for student in (found.picks if found is not None else ())
    ]
