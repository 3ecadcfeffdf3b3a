"""What engines answer, in processes of their own: right, wrong, not a number, and dead."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgekd.core.agreement import AnswersReport
from edgekd.core.bundle import ModelBundle
from edgekd.core.report_io import report_from_bundle
from edgekd.core.stage import Context, StageResult
from edgekd.errors import BuildFailed, UserError
from edgekd.profiling import answers_stage
from edgekd.profiling.answers_stage import OUTPUTS_FILE, AnswersConfig, AnswersStage, held_out, outputs_of
from edgekd.profiling.process import WorkerLost, WorkerProcess
from edgekd.runtimes.onnx_file import MODEL_FILE, graph_from_file
from edgekd.runtimes.session import RUNTIMES
from edgekd.testing.harness import make_context, make_inputs, run_stage
from edgekd.testing.toy_data import toy_dataset
from edgekd.testing.toy_graphs import toy_onnx_bundle
from edgekd.testing.toys import toy_recipe
from tests.profiling.bad_runtime import COMMAND, PLACE
from tests.profiling.cards import card

RESOURCES = {"target": card(here=True), "data": toy_dataset(n=80)}


def answered(ctx: Context, model: ModelBundle, reference: StageResult | None = None, **config: Any) -> StageResult:
    ports = {"model": model} | ({"reference": reference.bundle} if reference else {})
    given = {"candidate": "toy", "runtime": "onnxruntime", "images": 8, "dataset": True, **config}
    return run_stage(AnswersStage(AnswersConfig.model_validate(given)), make_inputs(**ports), ctx)


def report(ctx: Context, result: StageResult) -> AnswersReport:
    return report_from_bundle(result.bundle, AnswersReport, ctx, "answers")


def spoilt(ctx: Context, bundle: ModelBundle, factor: float) -> ModelBundle:
    """The same graph with another classifier."""
    model = graph_from_file(ctx.path(bundle, MODEL_FILE))
    head = next(entry for entry in model.graph.initializer if entry.name == "head.weight")
    head.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(head) * np.float32(factor), "head.weight"))
    path = ctx.scratch / "spoilt.onnx"
    onnx.save(model, path)
    return bundle.model_copy(update={"files": {MODEL_FILE: ctx.blobs.add(path)}})


@pytest.mark.parametrize(("factor", "within"), [(1.02, True), (1.2, False)])
def test_fp16_is_judged_by_its_noise_as_a_whole(tmp_path: Path, factor: float, within: bool) -> None:
    ctx = make_context(tmp_path, resources=RESOURCES)
    model = toy_onnx_bundle(ctx.blobs, ctx.scratch)
    reference = answered(ctx, model, keep=True, candidate="fp32")
    half = spoilt(ctx, model, factor)
    half = half.model_copy(update={"tags": {**half.tags, "precision": "fp16"}})
    found = report(ctx, answered(ctx, half, reference)).agreement
    assert found is not None
    assert found.within_tolerance is within
    assert (found.sqnr_db >= 30) is within


@pytest.mark.parametrize(
    ("factor", "within", "finite"), [(1.0, True, True), (1.2, False, True), (float("nan"), None, False)]
)
def test_an_engine_is_right_wrong_or_not_a_number(
    tmp_path: Path, factor: float, within: bool | None, finite: bool
) -> None:
    ctx = make_context(tmp_path, resources=RESOURCES)
    model = toy_onnx_bundle(ctx.blobs, ctx.scratch)
    reference = answered(ctx, model, keep=True, candidate="fp32")
    first = report(ctx, reference)
    assert first.agreement is None
    assert first.evaluation is not None
    assert (first.evaluation.metric, first.evaluation.n, first.origin) == ("top1", 8, "real")
    assert [value.shape for value in outputs_of(ctx.path(reference.bundle, OUTPUTS_FILE)).values()] == [(8, 4)]
    found = report(ctx, answered(ctx, spoilt(ctx, model, factor), reference))
    assert found.finite is finite
    assert (found.agreement and found.agreement.within_tolerance) is within
    if found.agreement is not None:
        assert found.agreement.reference == "fp32@onnxruntime"
        assert found.agreement.alike_means == "top1"
    if factor == 1.0:
        assert found.agreement is not None
        assert (found.agreement.alike, found.agreement.max_error) == (1.0, 0.0)
        assert (found.agreement.lost, found.agreement.gained) == (0, 0)


def test_images_lost_and_gained_are_counted_against_the_reference(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, resources=RESOURCES)
    model = toy_onnx_bundle(ctx.blobs, ctx.scratch)
    reference = answered(ctx, model, keep=True, images=16)
    turned = report(ctx, answered(ctx, spoilt(ctx, model, -1.0), reference, images=16))
    first = report(ctx, reference).evaluation
    assert turned.agreement is not None
    assert turned.evaluation is not None
    assert first is not None
    lost, gained = turned.agreement.lost, turned.agreement.gained
    assert lost is not None
    assert gained is not None
    assert first.value - turned.evaluation.value == pytest.approx((lost - gained) / 16)
    assert lost + gained > 0


def test_int8_is_judged_by_what_it_loses_and_noise_says_nothing_of_accuracy(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, resources=RESOURCES)
    model = toy_onnx_bundle(ctx.blobs, ctx.scratch)
    reference = answered(ctx, model, keep=True, dataset=False, images=2)
    int8 = model.model_copy(update={"tags": {"precision": "int8", "scheme": "ort-u8s8"}})
    found = report(ctx, answered(ctx, int8, reference, dataset=False, images=2))
    assert (found.origin, found.evaluation) == ("random", None)
    assert found.agreement is not None
    assert found.agreement.within_tolerance is None


def test_noise_is_short_and_outputs_that_memory_does_not_hold_end_the_answers_of_all_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx = make_context(tmp_path, resources=RESOURCES)
    model = toy_onnx_bundle(ctx.blobs, ctx.scratch)
    noise = answered(ctx, model, keep=True, dataset=False, images=1000)
    assert report(ctx, noise).images == answers_stage.NOISE_IMAGES
    outputs = 4 * int(model.outputs[0].shape[1])
    monkeypatch.setattr(answers_stage, "MOST_OUTPUT_BYTES", 3 * outputs)
    reference = answered(ctx, model, keep=True, images=8)
    assert report(ctx, reference).images == 3
    assert reference.decisions == ("3 of 8 images are answered: the outputs of more would not fit into memory.",)
    monkeypatch.setattr(answers_stage, "MOST_OUTPUT_BYTES", outputs)
    assert report(ctx, answered(ctx, model, reference, images=8)).images == 3
    monkeypatch.setattr(answers_stage, "MOST_INPUT_BYTES", 2 * 4 * 3 * 8 * 8)
    assert report(ctx, answered(ctx, model, keep=True, images=8)).images <= 2


def test_an_engine_that_crashes_while_it_answers_takes_nothing_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RUNTIMES._where, "bad", PLACE)
    monkeypatch.setattr(answers_stage, "WorkerProcess", partial(WorkerProcess, command=COMMAND))
    ctx = make_context(tmp_path, resources=RESOURCES)
    path = ctx.scratch / "bad.onnx"
    path.write_text("running segfault")
    bundle = toy_onnx_bundle(ctx.blobs, ctx.scratch).model_copy(update={"files": {MODEL_FILE: ctx.blobs.add(path)}})
    with pytest.raises(WorkerLost, match="crashed in native code \\(SIGSEGV\\) during 'answer the images'"):
        answered(ctx, bundle, runtime="bad", images=12)


def test_held_out_images_are_those_of_select_and_of_test_only_where_they_do_not_suffice() -> None:
    dataset = toy_dataset(n=80)
    p = toy_recipe(size=8).preprocessing
    few, few_labels = held_out(dataset, p, 5)
    all_, labels = held_out(dataset, p, 1000)
    assert (len(few), len(all_)) == (5, len(dataset.select) + len(dataset.test))
    assert few_labels is not None
    assert labels is not None
    np.testing.assert_array_equal(few_labels, dataset.select.labels[:5])  # type: ignore[index]  # it has labels
    assert len(labels) == len(all_)


def test_nothing_is_compared_with_a_reference_that_is_not_a_number(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, resources=RESOURCES)
    model = toy_onnx_bundle(ctx.blobs, ctx.scratch)
    reference = answered(ctx, spoilt(ctx, model, float("nan")), keep=True, images=1)
    with pytest.raises(BuildFailed, match="the reference, gave NaN or infinite outputs: nothing is comparable"):
        answered(ctx, model, reference, images=1)


def test_a_runtime_that_nobody_knows_is_a_users_mistake(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, resources=RESOURCES)
    with pytest.raises(UserError, match="onnxruntimes"):
        answered(ctx, toy_onnx_bundle(ctx.blobs, ctx.scratch), runtime="onnxruntimes")
