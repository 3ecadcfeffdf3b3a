from __future__ import annotations

import pytest
from torch import nn

from edgekd.core.recipe import ModelRecipe
from edgekd.search.limit import Cost, Costs, Limit, reachable_limit, student_limit
from tests.search.test_space import space_of

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


def test_a_relaxed_limit_is_marked() -> None:
    limit = Limit(value=0.08, params=1000, reason="R.")
    assert limit.kept
    assert not reachable_limit(limit, TINY, teacher=teacher(1.0), budget_ms=0.1, space="toy").kept


@pytest.mark.parametrize("full", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_a_student_that_does_not_fit_into_memory_is_over_every_limit(
    monkeypatch: pytest.MonkeyPatch, full: Exception
) -> None:
    def build(recipe: ModelRecipe) -> nn.Module:
        raise full

    monkeypatch.setattr("edgekd.search.limit.module_from_recipe", build)
    space = space_of("residual")
    costs = Costs(space, input_shape=(3, 8, 8), model=None, precision="fp32")
    largest = Limit(value=1e15, params=10**15, reason="R.")
    assert not largest.admits(costs.of(space.cheapest))
    assert costs.too_large == 1


def test_any_other_failure_to_build_a_student_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(recipe: ModelRecipe) -> nn.Module:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr("edgekd.search.limit.module_from_recipe", build)
    space = space_of("residual")
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        Costs(space, input_shape=(3, 8, 8), model=None, precision="fp32").of(space.cheapest)
