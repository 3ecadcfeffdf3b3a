from __future__ import annotations

import pytest

from edgekd.search.limit import Cost, Limit, reachable_limit, student_limit

TINY = Cost(predicted_ms=0.1, params=10, macs=1000)


def teacher(predicted_ms: float | None) -> Cost:
    return Cost(predicted_ms=predicted_ms, params=1000, macs=8_000_000)


@pytest.mark.parametrize(
    ("predicted_ms", "budget_ms", "relative_error", "expected"),
    [
        (10.0, 4.0, None, 4.0),
        (10.0, 4.0, 0.25, 3.2),
        (3.0, 4.0, None, 3.0),
        (10.0, None, 0.25, 2.0),
        (None, None, None, 1_600_000.0),
    ],
)
def test_the_limit_follows_budget_teacher_and_error(
    predicted_ms: float | None, budget_ms: float | None, relative_error: float | None, expected: float
) -> None:
    limit = student_limit(
        teacher(predicted_ms), TINY, budget_ms=budget_ms, teacher_share=0.2, relative_error=relative_error
    )
    assert limit.value == pytest.approx(expected)


def test_every_limit_says_where_it_comes_from() -> None:
    margin = student_limit(teacher(10.0), TINY, budget_ms=4.0, teacher_share=0.2, relative_error=0.25).reason
    cap = student_limit(teacher(3.0), TINY, budget_ms=4.0, teacher_share=0.2, relative_error=None).reason
    counted = Cost(predicted_ms=None, params=10, macs=1000)
    share = student_limit(teacher(None), counted, budget_ms=None, teacher_share=0.2, relative_error=None).reason
    assert "3.20 ms of 4.00 ms, the model's median error of 25 % left as margin" in margin
    assert "The teacher itself is predicted to keep 4.00 ms" in cap
    assert "0.2 of the teacher: 1,600,000 multiply-accumulates" in share


def test_a_student_with_more_parameters_than_the_teacher_is_not_admitted() -> None:
    limit = student_limit(teacher(10.0), TINY, budget_ms=4.0, teacher_share=0.2, relative_error=None)
    assert limit.admits(Cost(predicted_ms=4.0, params=1000, macs=1))
    assert not limit.admits(Cost(predicted_ms=1.0, params=1001, macs=1))
    assert not limit.admits(Cost(predicted_ms=4.1, params=10, macs=1))


@pytest.mark.parametrize(
    ("limit", "budget_ms", "said"),
    [
        (Limit(value=0.08, params=1000, reason="R."), 0.1, "A budget of 0.126 ms admits one."),
        (Limit(value=1.0, params=5, reason="R."), 2.0, "the smallest one has 1,000 multiply-accumulates and 10 para"),
    ],
)
def test_a_limit_that_nothing_keeps_admits_the_cheapest_alone(limit: Limit, budget_ms: float, said: str) -> None:
    of_teacher = Cost(predicted_ms=1.0, params=limit.params, macs=8_000_000)
    relaxed = reachable_limit(limit, TINY, teacher=of_teacher, budget_ms=budget_ms, space="toy")
    assert relaxed.admits(TINY)
    assert not relaxed.admits(Cost(predicted_ms=0.11, params=10, macs=1000))
    assert relaxed.reason.startswith("R. No student of the space 'toy'")
    assert said in relaxed.reason


def test_a_limit_that_the_cheapest_keeps_stays_as_it_is() -> None:
    limit = Limit(value=0.2, params=1000, reason="R.")
    assert reachable_limit(limit, TINY, teacher=teacher(1.0), budget_ms=0.2, space="toy") is limit
