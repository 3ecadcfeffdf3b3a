"""What the page shows of a search: every scored student, and only those picks that the run took on."""

from __future__ import annotations

from edgekd.pipeline.draft import Draft
from edgekd.pipeline.found import found_students
from edgekd.search.report import Candidate, Pick, SearchReport, Skipped
from edgekd.testing.toys import toy_recipe


def candidate(place: int, *, predicted_ms: float | None = 1.0) -> Candidate:
    return Candidate(
        arch=(place,),
        text=f"student {place}",
        score=float(place),
        spread=0.5,
        values={"params": float(place)},
        spreads={"params": 0.0},
        predicted_ms=predicted_ms,
        params_m=0.1,
        macs_m=5.0,
    )


def report(*, predicted_ms: float | None = 1.0) -> SearchReport:
    evaluated = tuple(candidate(place, predicted_ms=predicted_ms) for place in range(3))
    picks = [Pick(**c.plain(), recipe=toy_recipe(), reason=f"why {c.text}") for c in reversed(evaluated)]
    return SearchReport(
        space="residual",
        searcher="evolution",
        ranking="params",
        proxies=("params",),
        seeds=5,
        budget_ms=None,
        limit="Limit.",
        within_limit=True,
        precision="fp32",
        relative_error=None,
        picks=tuple(picks),
        front=evaluated[2:],
        evaluated=evaluated,
        skipped=(Skipped(arch=(9,), text="student 9", reason="No path."),),
        rejected=4,
    )


def test_only_the_picks_with_a_branch_are_marked() -> None:
    draft = Draft()
    draft.add("search", "search")
    for name in ("pick-1", "pick-2"):
        draft.add(name, "pick")
    found = found_students(report(), draft.graph())
    assert found is not None
    assert [(student.text, student.reason) for student in found.picks] == [
        ("student 2", "why student 2"),
        ("student 1", "why student 1"),
    ]
    assert [student.front for student in found.students] == [False, False, True]
    assert (found.predicted, found.skipped, found.rejected) == (True, 1, 4)


def test_without_a_latency_model_costs_are_multiply_accumulates() -> None:
    found = found_students(report(predicted_ms=None), Draft().graph())
    assert found is not None
    assert not found.predicted
    assert found.students[0].cost == 5.0


def test_a_run_without_a_search_shows_none() -> None:
    assert found_students(None, Draft().graph()) is None
