"""Which teachers are piloted, what pilots say, and when a step between is proposed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgekd.errors import UserError
from edgekd.search.teachers.advice import Pilot, advise, paired_difference
from edgekd.search.teachers.assistant import assistant_of, propose_assistant
from edgekd.search.teachers.shortlist import Candidate, ShortlistRule, Size, TeacherFacts, shortlist

STUDENT = Size(params_m=1.0, macs_m=100.0)
RULE = ShortlistRule()


def teacher(name: str, gap: float, accuracy: float, *, macs_gap: float | None = None) -> TeacherFacts:
    """A teacher `gap` times the student in parameters and, unless said otherwise, in MACs."""
    size = Size(params_m=gap, macs_m=100 * (gap if macs_gap is None else macs_gap))
    return TeacherFacts(name=name, size=size, accuracy=accuracy, low=accuracy - 0.01, high=accuracy + 0.01)


def listed(*teachers: TeacherFacts, rule: ShortlistRule = RULE) -> dict[str, Candidate]:
    return {candidate.teacher.name: candidate for candidate in shortlist(STUDENT, teachers, rule)}


def right(*rates: float, n: int = 1000, seed: int = 0) -> np.ndarray:
    """(S, N): for each seed a share of images that is right, the hardest images wrong first."""
    order = np.random.default_rng(seed).permutation(n)
    return np.stack([order < rate * n for rate in rates])


def test_teachers_within_the_gap_and_the_strongest_are_piloted_and_the_others_told_why_not() -> None:
    found = listed(
        teacher("tiny", 0.5, 0.6), teacher("near", 3, 0.8), teacher("far", 10, 0.85), teacher("huge", 40, 0.9)
    )
    assert {name: candidate.piloted for name, candidate in found.items()} == {
        "tiny": False, "near": True, "far": False, "huge": True,
    }  # fmt: skip
    assert found["tiny"].reason == "smaller than the student"
    assert found["near"].reason == "within 2x to 6x of the student"
    assert found["far"].reason == "10x the parameters and 10x the MACs of the student, outside 2x to 6x"
    assert found["huge"].reason == "the strongest, 90.0 %"


def test_either_size_within_the_gap_is_enough() -> None:
    found = listed(teacher("strong", 20, 0.9), teacher("lean", 12, 0.8, macs_gap=4))
    assert found["lean"].piloted
    assert found["lean"].gap == 4


def test_the_nearest_teacher_is_piloted_where_none_is_within_the_gap() -> None:
    found = listed(teacher("a", 30, 0.9), teacher("b", 9, 0.8), teacher("c", 20, 0.85))
    assert {name for name, candidate in found.items() if candidate.piloted} == {"a", "b"}
    assert found["b"].reason == "the nearest to 2x to 6x of the student"


def test_of_too_many_the_more_accurate_ones_are_piloted() -> None:
    teachers = [teacher(f"t{number}", 3, 0.7 + number / 100) for number in range(6)]
    found = listed(*teachers, rule=ShortlistRule(most=3))
    assert {name for name, candidate in found.items() if candidate.piloted} == {"t5", "t4", "t3"}
    assert found["t0"].reason == "3 more accurate ones are piloted"


def test_without_a_teacher_there_is_nothing_to_advise() -> None:
    with pytest.raises(UserError, match="No teacher is given"):
        shortlist(STUDENT, (), RULE)


def test_the_teacher_of_a_clearly_better_pilot_is_advised() -> None:
    pilots = [Pilot(name="far", correct=right(0.60, 0.61)), Pilot(name="near", correct=right(0.70, 0.71))]
    advice = advise(pilots, [teacher("far", 20, 0.9), teacher("near", 3, 0.8)])
    assert advice.teacher == "near"
    assert [result.name for result in advice.pilots] == ["near", "far"]
    assert advice.pilots[0].accuracy == pytest.approx(0.705)
    assert advice.pilots[0].low < 0.705 < advice.pilots[0].high
    assert advice.pilots[1].by_seed == (0.60, 0.61)
    assert advice.reason.startswith("near has the best pilot; far is 10.0 points behind (95 % interval ")


def test_without_a_difference_the_most_accurate_teacher_is_advised_and_it_is_said() -> None:
    pilots = [Pilot(name="weak", correct=right(0.70)), Pilot(name="strong", correct=right(0.695, seed=1))]
    advice = advise(pilots, [teacher("weak", 3, 0.8), teacher("strong", 5, 0.9)])
    assert advice.teacher == "strong"
    assert advice.reason == (
        "No difference was seen between the pilots of weak, strong; strong is the most accurate of them, and a longer "
        "training profits from that."
    )


def test_among_equally_accurate_teachers_without_a_difference_the_cheapest_is_advised() -> None:
    pilots = [Pilot(name="large", correct=right(0.70)), Pilot(name="small", correct=right(0.695, seed=1))]
    advice = advise(pilots, [teacher("large", 5, 0.9), teacher("small", 3, 0.895)])
    assert advice.teacher == "small"
    assert "small is the cheapest to run of those about as accurate as the strongest" in advice.reason


def test_an_assistant_is_advised_only_where_it_is_better() -> None:
    made = teacher("assistant", 2, 0.9).model_copy(update={"made": True})
    facts = [teacher("large", 20, 0.9), made]
    large = Pilot(name="large", correct=right(0.70))
    assert advise([large, Pilot(name="assistant", correct=right(0.71, seed=1))], facts).teacher == "large"
    assert advise([large, Pilot(name="assistant", correct=right(0.80, seed=1))], facts).teacher == "assistant"


def test_it_is_said_when_no_teacher_helps() -> None:
    pilots = [Pilot(name="a", correct=right(0.60)), Pilot(name="b", correct=right(0.50))]
    facts = [teacher("a", 3, 0.8), teacher("b", 4, 0.9)]
    advice = advise(pilots, facts, Pilot(name="labels alone", correct=right(0.61, seed=1)))
    assert advice.teacher == "a"
    assert advice.reason.endswith("No teacher was seen to help in so short a training: labels alone gave 61.0 %.")
    worse = advise(pilots, facts, Pilot(name="labels alone", correct=right(0.90)))
    assert worse.reason.endswith("But labels alone gave more, 90.0 %: no teacher helped in so short a training.")
    helped = advise(pilots, facts, Pilot(name="labels alone", correct=right(0.40)))
    assert "labels alone" not in helped.reason


def test_a_paired_difference_is_that_of_the_images_in_float64() -> None:
    a, b = right(0.7), right(0.6, seed=1)
    gaps = [float(x) - float(y) for x, y in zip(a[0], b[0], strict=True)]
    mean = sum(gaps) / len(gaps)
    half = 1.96 * math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / (len(gaps) - 1) / len(gaps))
    assert paired_difference(a, b) == pytest.approx((mean, mean - half, mean + half))


def test_seeds_that_disagree_widen_the_interval() -> None:
    b = right(0.6, 0.6)
    _, low, high = paired_difference(right(0.65, 0.65), b)
    _, wide_low, wide_high = paired_difference(right(0.60, 0.70), b)
    assert low > 0 > wide_low
    assert wide_high > high


def test_an_assistant_of_geometric_mean_size_is_proposed_only_where_every_teacher_is_far() -> None:
    far = shortlist(STUDENT, [teacher("far", 16, 0.8), teacher("huge", 64, 0.9)], RULE)
    proposed = propose_assistant(STUDENT, far)
    assert proposed is not None
    assert proposed.teacher == "huge"
    assert proposed.macs_keep == pytest.approx(1 / 8)
    assert proposed.macs_m == pytest.approx(math.sqrt(100 * 6400))
    assert proposed.reason == "the nearest teacher is 16x the student, above 6x"
    assert propose_assistant(STUDENT, shortlist(STUDENT, [teacher("near", 5, 0.8)], RULE)) is None


def test_there_is_no_assistant_below_the_student() -> None:
    candidates = shortlist(STUDENT, [teacher("small", 0.5, 0.8)], RULE)
    assert propose_assistant(STUDENT, candidates) is None
    with pytest.raises(UserError, match="There is no assistant between the student and small"):
        assistant_of(STUDENT, candidates, "asked for")
