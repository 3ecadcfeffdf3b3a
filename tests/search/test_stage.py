from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgekd.core.bundle import ModelBundle
from edgekd.core.recipe import ModelRecipe
from edgekd.core.report_io import bundle_from_report, report_from_bundle
from edgekd.core.stage import Context, Inputs, StageResult
from edgekd.errors import UserError
from edgekd.nn.build import module_from_recipe
from edgekd.nn.count import layer_costs
from edgekd.nn.save import bundle_from_module
from edgekd.search.config import SearchConfig
from edgekd.search.limit import Costs
from edgekd.search.report import SearchReport
from edgekd.search.scorer_spec import ScorerSpec
from edgekd.search.scoring import Score, Scorer
from edgekd.search.stage import SearchStage
from edgekd.search.workers import LocalWorker, Workers
from edgekd.targets.latency import LatencyModel
from edgekd.testing.conformance_searcher import toy_space
from edgekd.testing.harness import make_context, make_inputs, run_stage
from edgekd.testing.toy_data import toy_dataset
from edgekd.testing.toys import toy_bundle, toy_recipe


def latency_model(relative_error: float | None = None) -> LatencyModel:
    """A device that needs 1 ms for a million multiply-accumulates and 0.01 ms per operation."""
    return LatencyModel(
        target="toy",
        overhead_us_per_op=10,
        gmacs_per_s={"fp32": 1.0},
        efficiency={"other": 1.0},
        bandwidth_gb_s=1000,
        origin="fitted",
        relative_error=relative_error,
    )


def teacher_bundle(ctx: Context) -> ModelBundle:
    """A teacher with room for students below it."""
    kwargs = {"depths": [3, 3], "widths": [24, 32, 64], "classes": 4, "in_channels": 3}
    recipe = toy_recipe().model_copy(update={"kwargs": kwargs})
    return bundle_from_module(module_from_recipe(recipe), recipe=recipe, blobs=ctx.blobs, scratch=ctx.scratch)


def context(folder: Path, seed: int = 0) -> Context:
    return make_context(folder, seed=seed, resources={"data": toy_dataset()})


def search(folder: Path, **config: Any) -> tuple[SearchReport, StageResult, Context, Inputs]:
    ctx = context(folder)
    defaults = {"evaluations": 6, "population": 4, "tournament": 2, "seeds": 1, "teacher_share": 0.5}
    inputs = make_inputs(teacher=teacher_bundle(ctx))
    result = run_stage(SearchStage(SearchConfig(**(defaults | config))), inputs, ctx)
    return report_from_bundle(result.bundle, SearchReport, ctx, "search"), result, ctx, inputs


def fastest_ms() -> float:
    """Predicted latency of the cheapest student of the default space."""
    space = toy_space()
    costs = Costs(space, input_shape=(3, 8, 8), model=latency_model(), precision="fp32")
    return costs.of(space.cheapest).predicted_ms or 0.0


def test_picks_are_the_best_of_what_was_scored(tmp_path: Path) -> None:
    report, result, _, _ = search(tmp_path, picks=2)
    assert len(report.evaluated) == 6
    assert [pick.score for pick in report.picks] == sorted((c.score for c in report.evaluated), reverse=True)[:2]
    assert result.metrics["evaluated"] == 6
    assert any("ranked by combined (capacity + isotropy" in line for line in result.decisions)


def test_diswot_ranks_students_with_their_spread_over_seeds(tmp_path: Path) -> None:
    report, _, _, _ = search(tmp_path, proxy="diswot+params", seeds=2, evaluations=3)
    assert all(candidate.values["diswot"] < 0 < candidate.values["params"] for candidate in report.evaluated)
    assert any(candidate.spreads["diswot"] > 0 for candidate in report.evaluated)


def test_no_scored_student_is_over_the_budget(tmp_path: Path) -> None:
    budget = 2 * fastest_ms()
    report, _, _, _ = search(tmp_path, budget_ms=budget, latency_model=latency_model(), evaluations=5)
    for candidate in report.evaluated:
        assert candidate.predicted_ms is not None
        assert candidate.predicted_ms <= budget
    assert report.rejected > 0


def test_a_pick_s_latency_is_what_the_model_predicts_for_it(tmp_path: Path) -> None:
    report, _, _, _ = search(tmp_path, latency_model=latency_model())
    costs = layer_costs(module_from_recipe(report.picks[0].recipe), (3, 8, 8))
    assert report.picks[0].predicted_ms == pytest.approx(latency_model().predict_ms(costs, "fp32"))


def test_the_error_of_the_latency_model_is_left_as_margin(tmp_path: Path) -> None:
    budget = 2 * fastest_ms()
    model = latency_model(relative_error=0.25)
    report, result, _, _ = search(tmp_path, budget_ms=budget, latency_model=model)
    assert all((candidate.predicted_ms or 0) <= budget / 1.25 for candidate in report.evaluated)
    assert any("25 % left as margin" in line or "costs at most what it costs" in line for line in result.decisions)


def test_a_fitted_model_on_the_port_comes_before_the_card(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    slow = latency_model().model_copy(update={"overhead_us_per_op": 1e6})
    fitted = bundle_from_report(latency_model(), ctx)
    inputs = make_inputs(teacher=teacher_bundle(ctx), latency_model=fitted)
    config = SearchConfig(latency_model=slow, evaluations=1)
    report = report_from_bundle(run_stage(SearchStage(config), inputs, ctx).bundle, SearchReport, ctx, "search")
    assert report.picks[0].predicted_ms is not None
    assert report.picks[0].predicted_ms < 100


def test_under_a_budget_that_no_student_keeps_the_fastest_one_goes_on_with_the_reason(tmp_path: Path) -> None:
    report, result, _, _ = search(tmp_path / "a", budget_ms=1e-6, latency_model=latency_model())
    assert [set(pick.arch) for pick in report.picks] == [{0}]
    said = re.search(
        r"No student of the space 'residual' keeps .*: the fastest one is predicted to take ([\d.]+) ms. "
        r"A budget of ([\d.]+) ms admits one. The cheapest one goes on all the same.",
        result.decisions[0],
    )
    assert said is not None
    assert float(said[1]) == pytest.approx(report.picks[0].predicted_ms, rel=0.01)
    admitted, other, _, _ = search(
        tmp_path / "b", budget_ms=float(said[2]), latency_model=latency_model(), evaluations=1
    )
    assert admitted.picks
    assert "goes on all the same" not in other.decisions[0]


@pytest.mark.parametrize("budget_ms", [None, 1e-6])
def test_beside_a_teacher_smaller_than_the_space_the_cheapest_goes_on_with_advice(
    tmp_path: Path, budget_ms: float | None
) -> None:
    ctx = context(tmp_path)
    inputs = make_inputs(teacher=toy_bundle(ctx.blobs, ctx.scratch))
    config = SearchConfig(budget_ms=budget_ms, latency_model=latency_model(), channel_multiple=64, evaluations=1)
    result = run_stage(SearchStage(config), inputs, ctx)
    report = report_from_bundle(result.bundle, SearchReport, ctx, "search")
    assert len(report.picks) == 1
    assert "The teacher is small already: leave the search out" in result.decisions[0]


def test_a_share_that_no_student_reaches_is_relaxed_and_said_so(tmp_path: Path) -> None:
    report, result, _, _ = search(tmp_path, teacher_share=1e-6, evaluations=2)
    assert report.picks
    assert any("half way from the cheapest one to the teacher" in line for line in result.decisions)


def test_a_budget_without_a_latency_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs a latency model"):
        search(tmp_path, budget_ms=1.0)


@pytest.mark.parametrize(("key", "value"), [("space", "residul"), ("proxy", "diswot+parms"), ("searcher", "nsga3")])
def test_unknown_names_are_answered_with_the_near_one(tmp_path: Path, key: str, value: str) -> None:
    with pytest.raises(UserError, match="Did you mean"):
        search(tmp_path, **{key: value})


def test_more_picks_than_evaluations_are_refused() -> None:
    with pytest.raises(UserError, match="3 picks need at least as many evaluations, got 2"):
        SearchConfig.parse({"picks": 3, "evaluations": 2}, "search")


def test_a_killed_search_ends_as_the_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config: dict[str, Any] = {"proxy": "diswot+params", "evaluations": 5, "generation": 2}
    whole, _, _, _ = search(tmp_path / "whole", **config)
    original, calls = Scorer.score, 0

    def dies_at_the_fourth(self: Scorer, recipe: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return original(self, recipe)

    monkeypatch.setattr(Scorer, "score", dies_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "killed", **config)
    resumed, _, _, _ = search(tmp_path / "killed", **config)
    assert resumed == whole
    assert calls == 4 + 2


@pytest.mark.parametrize("searcher", ["nsga2", "random"])
def test_every_searcher_can_be_asked_for(tmp_path: Path, searcher: str) -> None:
    report, result, _, _ = search(tmp_path, searcher=searcher)
    assert report.searcher == searcher
    assert f"Searcher: {searcher}, as asked for." in result.decisions


def test_the_front_holds_what_nothing_beats(tmp_path: Path) -> None:
    report, result, _, _ = search(tmp_path, latency_model=latency_model(), evaluations=12, proxy="params")
    assert result.metrics["front"] == len(report.front) > 1
    assert report.picks[0].arch in {candidate.arch for candidate in report.front}
    for own in report.front:
        cheaper = [c for c in report.evaluated if c.cost < own.cost and c.params_m < own.params_m]
        assert all(c.score <= own.score for c in cheaper)
    assert [candidate.cost for candidate in report.front] == sorted(candidate.cost for candidate in report.front)


def test_the_pick_says_how_far_it_leads_and_what_seeds_could_change(tmp_path: Path) -> None:
    sized, _, _, _ = search(tmp_path / "sized", proxy="params")
    random, result, _, _ = search(tmp_path / "random", proxy="diswot", seeds=3)
    single, _, _, _ = search(tmp_path / "single", proxy="diswot", seeds=1)
    assert "highest score of 6 students within the limit" in sized.picks[0].reason
    assert "no random draw takes part in this ranking" in sized.picks[0].reason
    assert "other seeds than these 3 would move that by about" in random.picks[0].reason
    assert "with a single seed nobody knows how much of that is chance" in single.picks[0].reason
    assert any(random.picks[0].reason in line for line in result.decisions)
    assert any(candidate.spread > 0 for candidate in random.evaluated)
    assert all(candidate.spread == 0 for candidate in sized.evaluated)


def unscorable(monkeypatch: pytest.MonkeyPatch, when: Callable[[ModelRecipe], bool]) -> None:
    """Lets the scorer give up on some students."""
    original = Scorer.score

    def score(self: Scorer, recipe: ModelRecipe) -> Score:
        skipped = Score(values=(), spreads=(), skipped="No path from input to output.")
        return skipped if when(recipe) else original(self, recipe)

    monkeypatch.setattr(Scorer, "score", score)


def test_what_cannot_be_scored_is_listed_with_the_reason_and_not_ranked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unscorable(monkeypatch, lambda recipe: recipe.kwargs["depths"][0] > 1)  # type: ignore[index,operator,call-overload]
    report, result, ctx, _ = search(tmp_path, evaluations=10)
    assert report.skipped
    assert {student.reason for student in report.skipped} == {"No path from input to output."}
    assert len(report.skipped) + len(report.evaluated) == 10
    assert all("depths 1-" in candidate.text for candidate in report.evaluated)
    assert any("could not be scored and are not ranked" in line for line in result.decisions)
    said = [event for event in ctx.reporter.events if "is not scored" in str(event.get("text"))]  # type: ignore[attr-defined]
    assert len(said) == len(report.skipped)


def test_a_search_in_which_nothing_can_be_scored_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unscorable(monkeypatch, lambda recipe: True)
    with pytest.raises(UserError, match="None of 6 students of the space 'residual' could be scored") as refused:
        search(tmp_path)
    assert "6 of them: No path from input to output." in str(refused.value)
    assert "--proxy params+macs" in str(refused.value.hint)


def test_the_workers_of_the_execution_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def local(text: str, spec: ScorerSpec) -> Workers:
        asked.append(text)
        return LocalWorker(spec.scorer())

    monkeypatch.setattr("edgekd.search.stage.workers_from_text", local)
    ctx = context(tmp_path)
    ctx = replace(ctx, execution=replace(ctx.execution, workers="7"))
    config = SearchConfig(evaluations=2, proxy="params", teacher_share=0.5)
    run_stage(SearchStage(config), make_inputs(teacher=teacher_bundle(ctx)), ctx)
    assert asked == ["7"]


def test_equal_seeds_give_equal_reports(tmp_path: Path) -> None:
    first, again = (search(tmp_path / name)[1].bundle.content for name in ("a", "b"))
    assert first == again


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    _, _, ctx, _ = search(tmp_path)
    steps = [event for event in ctx.reporter.events if event.get("task") == "search"]  # type: ignore[attr-defined]
    assert steps[-1]["done"] == steps[-1]["total"] == 6
