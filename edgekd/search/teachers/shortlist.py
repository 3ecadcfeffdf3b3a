"""Which of several teachers are worth a pilot for one student, from their sizes and accuracies alone.

The best teacher is not the strongest one: a student learns less from a teacher far above its own capacity (Cho and
Hariharan 2019, arXiv 1910.01348; Mirzadeh et al. 2020, arXiv 1902.03393). How far is too far differs between families
and objectives; the constant of 2.5x that was found for language models is not assumed here. So the rule is wide, always
keeps the strongest teacher, and leaves the decision to pilots.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import Field

from edgekd.core.schema import Schema
from edgekd.core.text import percent, significant
from edgekd.errors import UserError


class Size(Schema):
    """How large a network is.

    Attributes:
        params_m: Parameters, millions.
        macs_m: Multiply-accumulates of one image, millions.
    """

    params_m: float = Field(gt=0)
    macs_m: float = Field(gt=0)


class TeacherFacts(Schema):
    """What was measured of a teacher.

    Attributes:
        name: Of the teacher.
        size: Of the teacher.
        accuracy: Top-1 on the `select` split, in [0, 1].
        low: Lower end of its 95 % interval.
        high: Upper end of its 95 % interval.
        fit: How well its features fit the labels of the training split (LogME); None where that is unknown.
        fit_low: Lower end of the 90 % range of `fit` over resampled images.
        fit_high: Upper end.
        made: Whether it does not exist yet for the real training: an assistant, which would have to be trained first.
    """

    name: str
    size: Size
    accuracy: float = Field(ge=0, le=1)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)
    fit: float | None = None
    fit_low: float | None = None
    fit_high: float | None = None
    made: bool = False


class ShortlistRule(Schema):
    """Which gaps between teacher and student are tried.

    Attributes:
        smallest_gap: Least ratio of the teacher's size to the student's.
        largest_gap: Greatest ratio.
        most: Largest number of pilots.
    """

    smallest_gap: float = Field(default=2.0, ge=1)
    largest_gap: float = Field(default=6.0, gt=1)
    most: int = Field(default=4, ge=1)

    def holds(self, gap: float) -> bool:
        """Whether a ratio of sizes is within the rule."""
        return self.smallest_gap <= gap <= self.largest_gap

    @property
    def words(self) -> str:
        """`2x to 6x`."""
        return f"{self.smallest_gap:g}x to {self.largest_gap:g}x"


class Candidate(Schema):
    """One teacher beside the student, and whether it is piloted.

    Attributes:
        teacher: What was measured.
        gap_params: Its parameters over the student's.
        gap_macs: Its multiply-accumulates over the student's.
        piloted: Whether it is on the shortlist.
        reason: Why, one phrase.
    """

    teacher: TeacherFacts
    gap_params: float
    gap_macs: float
    piloted: bool
    reason: str

    @property
    def gap(self) -> float:
        """The smaller of both ratios."""
        return min(self.gap_params, self.gap_macs)


def shortlist(student: Size, teachers: Sequence[TeacherFacts], rule: ShortlistRule) -> tuple[Candidate, ...]:
    """Every teacher in the given order, on the shortlist or not, and why.

    On it are the strongest teacher and those whose parameters or multiply-accumulates are within the rule; where none
    is, the one nearest to it. When that makes more than `rule.most`, the more accurate ones stay.

    Raises:
        UserError: No teacher is given.
    """
    if not teachers:
        raise UserError("No teacher is given.", hint="give at least one: --teacher FILE --arch NAME")
    gaps = {t.name: (t.size.params_m / student.params_m, t.size.macs_m / student.macs_m) for t in teachers}
    ranked = sorted(teachers, key=lambda t: (-t.accuracy, t.size.macs_m))
    strongest = ranked[0].name
    reasons = {strongest: f"the strongest, {percent(ranked[0].accuracy)}"}
    fitting = [t.name for t in ranked if any(rule.holds(gap) for gap in gaps[t.name])]
    for name in fitting:
        reasons.setdefault(name, f"within {rule.words} of the student")
    if not fitting:
        nearest = min(ranked, key=lambda t: _distance(gaps[t.name], rule)).name
        reasons.setdefault(nearest, f"the nearest to {rule.words} of the student")
    piloted = list(reasons)[: rule.most]
    dropped = dict.fromkeys(list(reasons)[rule.most :], f"{rule.most} more accurate ones are piloted")
    return tuple(
        Candidate(
            teacher=t,
            gap_params=gaps[t.name][0],
            gap_macs=gaps[t.name][1],
            piloted=t.name in piloted,
            reason=reasons[t.name] if t.name in piloted else dropped.get(t.name, _why_not(gaps[t.name], rule)),
        )
        for t in teachers
    )


def _why_not(gaps: tuple[float, float], rule: ShortlistRule) -> str:
    if max(gaps) < 1:
        return "smaller than the student"
    params, macs = (significant(gap, 2) for gap in gaps)
    return f"{params}x the parameters and {macs}x the MACs of the student, outside {rule.words}"


def _distance(gaps: tuple[float, float], rule: ShortlistRule) -> float:
    """How far the nearer of both ratios is from the rule, as a factor's logarithm."""
    return min(max(math.log(rule.smallest_gap / gap), math.log(gap / rule.largest_gap)) for gap in gaps)
