"""The select and gate nodes."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.report import Budget, EvaluationReport, Verdict
from edgekd.core.report_io import bundle_from_report, report_from_bundle
from edgekd.core.stage import Context, StageResult
from edgekd.errors import UserError
from edgekd.gate.stage import CHOICE_FILE, GateConfig, GateStage, SelectConfig, SelectStage, choice_from_bundle
from edgekd.testing.harness import make_context, make_inputs, run_stage
from edgekd.testing.toys import toy_recipe
from tests.gate.results import accuracy, entry, profile
from tests.profiling.cards import card

REPORT = profile(entry("teacher-fp32", 3.0), entry("teacher-int8", 1.0))
BUDGET = Budget(max_latency_ms=2.0, max_drop=0.01)


def model(ctx: Context, precision: str, **tags: str) -> ModelBundle:
    path = ctx.scratch / precision
    path.write_text(precision)
    files = {"model.onnx": ctx.blobs.add(path)}
    return ModelBundle(kind=BundleKind.ONNX, files=files, recipe=toy_recipe(), tags={"precision": precision, **tags})


def select(ctx: Context) -> StageResult:
    found = tuple(accuracy(name, 0.9) for name in ("teacher-fp32", "teacher-int8"))
    inputs = make_inputs(
        candidates=[("teacher-fp32", model(ctx, "fp32")), ("teacher-int8", model(ctx, "int8"))],
        profile=bundle_from_report(REPORT, ctx),
        evaluations=[(e.candidate, bundle_from_report(EvaluationReport(evaluations=(e,)), ctx)) for e in found],
    )
    return run_stage(SelectStage(SelectConfig(budget=BUDGET, reference="teacher-fp32")), inputs, ctx)


def test_select_hands_on_the_chosen_bundle_and_where_it_runs(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, resources={"target": card(here=True)})
    result = select(ctx)
    assert ctx.path(result.bundle, "model.onnx").read_text() == "int8"
    assert result.bundle.tags == {
        "precision": "int8",
        "candidate": "teacher-int8",
        "runtime": "onnxruntime",
        "reference": "teacher-fp32",
    }
    assert choice_from_bundle(result.bundle, ctx).candidate == "teacher-int8"
    assert result.decisions[0].startswith("teacher-int8 in onnxruntime is deployed: ")
    assert result.decisions[1] == "Not teacher-fp32@onnxruntime: slower: 3.00 ms against 1.00 ms."


def test_twins_come_from_one_trained_model_and_not_from_one_architecture(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, resources={"target": card(here=True)})
    names = ("student-fp32", "student-w4-fp32", "student-w4-int8")
    report = profile(entry(names[0], 1.0), entry(names[1], 3.0), entry(names[2], 2.0))
    found = [accuracy(name, 0.8 if name == names[0] else 0.9) for name in names]
    inputs = make_inputs(
        candidates=[
            (names[0], model(ctx, "fp32", model="weights before")),
            (names[1], model(ctx, "fp32", model="weights after")),
            (names[2], model(ctx, "int8", model="weights after")),
        ],
        profile=bundle_from_report(report, ctx),
        evaluations=[(e.candidate, bundle_from_report(EvaluationReport(evaluations=(e,)), ctx)) for e in found],
    )
    stage = SelectStage(SelectConfig(budget=Budget(max_drop=0.01), reference=names[1]))
    result = run_stage(stage, inputs, ctx)
    assert result.bundle.tags["candidate"] == names[2], "faster than its own twin; the other FP32 engine is no twin"


def test_gate_judges_the_chosen_engine_on_the_test_split(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, resources={"target": card(here=True)})
    chosen = select(ctx).bundle
    tests = (accuracy("chosen", 0.897, split="test"), accuracy("teacher-fp32", 0.9, split="test"))
    inputs = make_inputs(
        chosen=[("chosen", chosen)],
        profile=bundle_from_report(REPORT, ctx),
        evaluations=[("test", bundle_from_report(EvaluationReport(evaluations=tests), ctx))],
    )
    result = run_stage(GateStage(GateConfig(budget=BUDGET)), inputs, ctx)
    verdict = report_from_bundle(result.bundle, Verdict, ctx, "gate")
    assert verdict.status == "PASS"
    assert [check.name for check in verdict.checks] == ["latency", "drop in top-1 accuracy"]
    assert result.decisions == (f"PASS: {verdict.reason}",)


def test_gate_without_evaluations_cannot_tell_the_drop(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, resources={"target": card(here=True)})
    inputs = make_inputs(chosen=[("chosen", select(ctx).bundle)], profile=bundle_from_report(REPORT, ctx))
    result = run_stage(GateStage(GateConfig(budget=BUDGET)), inputs, ctx)
    assert report_from_bundle(result.bundle, Verdict, ctx, "gate").status == "INCONCLUSIVE"


def test_a_bundle_that_nobody_chose_is_refused(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    bundle = model(ctx, "fp32")
    assert CHOICE_FILE not in bundle.files
    with pytest.raises(UserError, match="was not chosen by a select node"):
        choice_from_bundle(bundle, ctx)
