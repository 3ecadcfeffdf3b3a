"""A teacher assistant: a network between student and teacher, where every teacher is far too large.

The teacher teaches the assistant, and the assistant the student (Mirzadeh et al. 2020, arXiv 1902.03393). Its size is
the geometric mean of both, so that the two steps are of one ratio.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import Field

from edgekd.core.schema import Schema
from edgekd.core.text import significant
from edgekd.errors import UserError
from edgekd.search.teachers.shortlist import Candidate, Size

LARGE_GAP = 6.0
"""Above this ratio of sizes an assistant is proposed: the upper end of the shortlist's rule."""


class Assistant(Schema):
    """An assistant worth trying.

    Attributes:
        teacher: Which teacher it is cut from.
        macs_keep: Share of the teacher's multiply-accumulates that it keeps.
        macs_m: Its multiply-accumulates, millions.
        reason: Why, one sentence.
    """

    teacher: str
    macs_keep: float = Field(gt=0, lt=1)
    macs_m: float
    reason: str


def propose_assistant(student: Size, candidates: Sequence[Candidate], threshold: float = LARGE_GAP) -> Assistant | None:
    """The assistant under the strongest piloted teacher; None where some teacher is within `threshold` already."""
    larger = [candidate for candidate in candidates if candidate.piloted and candidate.gap > 1]
    if not larger or min(candidate.gap for candidate in larger) <= threshold:
        return None
    nearest = min(candidate.gap for candidate in larger)
    reason = f"the nearest teacher is {significant(nearest, 2)}x the student, above {threshold:g}x"
    return assistant_of(student, larger, reason)


def assistant_of(student: Size, candidates: Sequence[Candidate], reason: str) -> Assistant:
    """The assistant between the student and the strongest of the piloted teachers.

    Raises:
        UserError: That teacher is not larger than the student, so there is nothing between them.
    """
    chosen = max((c for c in candidates if c.piloted), key=lambda c: c.teacher.accuracy)
    if chosen.gap_macs <= 1:
        raise UserError(
            f"There is no assistant between the student and {chosen.teacher.name}: the teacher has "
            f"{significant(chosen.gap_macs, 2)}x its MACs.",
            hint="leave --assistant out",
        )
    keep = 1 / math.sqrt(chosen.gap_macs)
    return Assistant(
        teacher=chosen.teacher.name, macs_keep=keep, macs_m=keep * chosen.teacher.size.macs_m, reason=reason
    )
