from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from edgekd.core.bundle import ModelBundle
from edgekd.core.report_io import bundle_from_report, report_from_bundle
from edgekd.core.stage import Context, Inputs, StageResult
from edgekd.errors import UserError
from edgekd.nn.build import module_from_bundle, module_from_recipe
from edgekd.nn.count import count_macs, layer_costs
from edgekd.nn.save import bundle_from_module
from edgekd.search.report import SearchReport
from edgekd.search.scoring import Scorer
from edgekd.search.stage import PickConfig, PickStage, SearchConfig, SearchStage
from edgekd.targets.latency import LatencyModel
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


def fastest_ms(folder: Path) -> float:
    """Predicted latency of the cheapest student of the default space."""
    ctx = context(folder)
    inputs = make_inputs(teacher=teacher_bundle(ctx))
    config = SearchConfig(budget_ms=1e-6, latency_model=latency_model(), evaluations=1)
    result = run_stage(SearchStage(config), inputs, ctx)
    return float(str(result.metrics["predicted_ms"]))


def test_picks_are_the_best_of_what_was_scored(tmp_path: Path) -> None:
    report, result, _, _ = search(tmp_path, picks=2)
    assert len(report.evaluated) == 6
    assert [pick.score for pick in report.picks] == sorted((c.score for c in report.evaluated), reverse=True)[:2]
    assert result.metrics["evaluated"] == 6
    assert any("ranked by params + macs" in line for line in result.decisions)


def test_diswot_ranks_students_with_their_spread_over_seeds(tmp_path: Path) -> None:
    report, _, _, _ = search(tmp_path, proxy="diswot+params", seeds=2, evaluations=3)
    assert all(candidate.values["diswot"] < 0 < candidate.values["params"] for candidate in report.evaluated)
    assert any(candidate.spreads["diswot"] > 0 for candidate in report.evaluated)


def test_no_scored_student_is_over_the_budget(tmp_path: Path) -> None:
    budget = 1.3 * fastest_ms(tmp_path / "a")
    report, _, _, _ = search(tmp_path / "b", budget_ms=budget, latency_model=latency_model(), evaluations=5)
    for candidate in report.evaluated:
        assert candidate.predicted_ms is not None
        assert candidate.predicted_ms <= budget
    assert report.rejected > 0


def test_a_pick_s_latency_is_what_the_model_predicts_for_it(tmp_path: Path) -> None:
    report, _, _, _ = search(tmp_path, latency_model=latency_model())
    costs = layer_costs(module_from_recipe(report.picks[0].recipe), (3, 8, 8))
    assert report.picks[0].predicted_ms == pytest.approx(latency_model().predict_ms(costs, "fp32"))


def test_the_error_of_the_latency_model_is_left_as_margin(tmp_path: Path) -> None:
    budget = 2 * fastest_ms(tmp_path / "a")
    model = latency_model(relative_error=0.25)
    report, result, _, _ = search(tmp_path / "b", budget_ms=budget, latency_model=model)
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
    admitted, other, _, _ = search(tmp_path / "b", budget_ms=float(said[2]), latency_model=latency_model())
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


@pytest.mark.parametrize(("key", "value"), [("space", "residul"), ("proxy", "diswot+parms")])
def test_unknown_names_are_answered_with_the_near_one(tmp_path: Path, key: str, value: str) -> None:
    with pytest.raises(UserError, match="Did you mean"):
        search(tmp_path, **{key: value})


def test_more_picks_than_evaluations_are_refused() -> None:
    with pytest.raises(UserError, match="3 picks need at least as many evaluations, got 2"):
        SearchConfig.parse({"picks": 3, "evaluations": 2}, "search")


def test_a_killed_search_ends_as_the_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _, _, _ = search(tmp_path / "whole", proxy="diswot+params", evaluations=5)
    original, calls = Scorer.score, 0

    def dies_at_the_fourth(self: Scorer, recipe: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return original(self, recipe)

    monkeypatch.setattr(Scorer, "score", dies_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "killed", proxy="diswot+params", evaluations=5)
    resumed, _, _, _ = search(tmp_path / "killed", proxy="diswot+params", evaluations=5)
    assert resumed == whole
    assert calls == 4 + 2


def test_equal_seeds_give_equal_reports(tmp_path: Path) -> None:
    first, again = (search(tmp_path / name)[1].bundle.content for name in ("a", "b"))
    assert first == again


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    _, _, ctx, _ = search(tmp_path)
    steps = [event for event in ctx.reporter.events if event.get("task") == "search"]  # type: ignore[attr-defined]
    assert steps[-1]["done"] == steps[-1]["total"] == 6


def test_the_picked_student_is_built_with_weights_from_the_seed(tmp_path: Path) -> None:
    report, result, ctx, _ = search(tmp_path)
    first, again = (run_stage(PickStage(PickConfig()), make_inputs(search=result.bundle), ctx) for _ in range(2))
    assert first.bundle.content == again.bundle.content
    assert first.bundle.model == report.picks[0].recipe
    module = module_from_bundle(first.bundle, ctx.blobs)
    assert module(torch.zeros(1, 3, 8, 8)).shape == (1, 4)
    assert first.metrics["macs_m"] == pytest.approx(count_macs(module, (3, 8, 8)) / 1e6)


def test_a_rank_beyond_the_picks_is_refused(tmp_path: Path) -> None:
    _, result, ctx, _ = search(tmp_path)
    with pytest.raises(UserError, match="none of rank 3"):
        run_stage(PickStage(PickConfig(rank=3)), make_inputs(search=result.bundle), ctx)
