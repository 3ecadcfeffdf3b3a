"""How many layers stay in float: until a limit holds, which is counted where the deployed engine will be judged."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from edgekd.core.stage import Context, StageResult
from edgekd.errors import BuildFailed, UserError
from edgekd.quant.form import quantized_nodes
from edgekd.quant.limit import Limit
from edgekd.quant.ptq_stage import QuantizeConfig, QuantizeStage
from edgekd.quant.trial import Judge, Score
from edgekd.testing.harness import make_context, make_inputs, run_stage
from edgekd.testing.toy_data import toy_dataset
from edgekd.testing.toy_graphs import toy_onnx_bundle
from tests.quant.test_ptq_stage import calibration, quantize, recorded


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    return make_context(tmp_path)


def test_more_layers_in_float_than_there_are_is_a_graph_that_cannot_be_made(ctx: Context) -> None:
    """`--mixed 6` asks for up to 32; a small network has fewer, and a run goes on without those graphs."""
    with pytest.raises(BuildFailed, match=r"32 layers are to stay in float, and the graph has \d+ that INT8 could"):
        quantize(ctx, QuantizeConfig(scheme="ort-u8s8", calib_method="minmax", revert=32))


def test_a_limit_that_int8_keeps_reverts_nothing_and_measures_no_sensitivity(ctx: Context) -> None:
    result = quantize(ctx, QuantizeConfig(scheme="ort-u8s8", max_drop=0.5))
    assert result.metrics["layers_in_float"] == 0
    assert result.decisions[-1].startswith("No layer is reverted: INT8 loses ")
    tasks = {event["task"] for event in recorded(ctx) if event["event"] == "progress"}
    assert "precision trials" in tasks
    assert "layer sensitivity" not in tasks


def test_layers_are_reverted_until_the_limit_holds_and_are_named(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Agreement rises with the number of layers in float, as a loss that INT8 cannot help would have it."""
    asked: list[int] = []

    def score(limit: Limit, graph: onnx.ModelProto) -> Score:
        asked.append(len(quantized_nodes(graph)))
        return Score(n=100, sqnr_db=10.0, agreement=0.90 + 0.05 * min(len(asked) - 1, 2))

    monkeypatch.setattr(Limit, "score", score)
    result = quantize(ctx, QuantizeConfig(scheme="ort-u8s8", calib_method="minmax", max_drop=0.01))
    assert asked[0] > asked[1] >= asked[2], "0, 1 and 2 layers in float"
    assert result.metrics["limit_held"] is True
    assert result.metrics["layers_in_float"] == 2
    (said,) = (text for text in result.decisions if "layers stay in float" in text)
    assert re.match(
        r"2 layers stay in float: INT8 alone loses 10\.0 points of agreement with FP32 on 100 calibration samples, "
        r"1\.0 points is allowed, and with them it loses 0\.0 points \(3 trials\)\. "
        r"The most sensitive first: \w+, \w+\.",
        said,
    )


def scores(*, fp32: float, teacher: float, int8: float = 0.0) -> Callable[..., Score]:
    """What a judge finds of graphs with and without quantized nodes, against a teacher's accuracy."""

    def score(_: Judge, graph: onnx.ModelProto, part: slice = slice(None)) -> Score:
        found = int8 if quantized_nodes(graph) else fp32
        return Score(n=100, sqnr_db=10.0, agreement=found, top1=found, top1_fp32=teacher)

    return score


class WithData:
    """A context with labelled data, a model, its samples and a teacher."""

    def __init__(self, folder: Path, *, teacher_labels: tuple[str, ...] = ()) -> None:
        self.data = toy_dataset(n=160)
        self.ctx = make_context(folder, resources={"data": self.data})
        self.model = toy_onnx_bundle(self.ctx.blobs, self.ctx.scratch)
        other = toy_onnx_bundle(self.ctx.blobs, self.ctx.scratch, seed=5)
        recipe = other.model.model_copy(update={"labels": teacher_labels})
        self.teacher = other.model_copy(update={"recipe": recipe})

    def quantized(self, **config: object) -> StageResult:
        options = {"scheme": "ort-u8s8", "calib_method": "minmax", "judged_on": "select", **config}
        stage = QuantizeStage(QuantizeConfig.parse(options, "test"))
        inputs = make_inputs(model=self.model, calibration=calibration(self.ctx, self.model), teacher=self.teacher)
        return run_stage(stage, inputs, self.ctx)


def test_the_limit_is_judged_on_the_select_split_against_the_teacher(tmp_path: Path) -> None:
    world = WithData(tmp_path)
    result = world.quantized(max_drop=1.0)
    (said,) = (text for text in result.decisions if text.startswith("No layer is reverted"))
    images = len(world.data.select)
    assert f"of accuracy on {images} images of the select split, against the teacher or its FP32 twin" in said
    assert result.metrics["limit_held"] is True


def test_no_layer_is_reverted_for_a_limit_that_fp32_misses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Limit, "score", lambda *_: pytest.fail("an INT8 graph is tried"))
    monkeypatch.setattr(Judge, "score", scores(fp32=0.80, teacher=0.85))
    result = WithData(tmp_path).quantized(max_drop=0.01, bias_correction=False)
    assert result.metrics["limit_held"] is False
    assert result.metrics["layers_in_float"] == 0
    assert any(text.startswith("FP32 already loses 5.0 points of accuracy against the") for text in result.decisions)


def test_a_student_that_is_better_than_its_teacher_is_held_to_its_own_fp32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A choice refuses INT8 that is worse than its twin by more than the limit, however good the twin is."""
    monkeypatch.setattr(Judge, "score", scores(fp32=0.93, teacher=0.90, int8=0.91))
    result = WithData(tmp_path).quantized(max_drop=0.01, bias_correction=False)
    assert result.metrics["limit_held"] is False
    assert any("the best loses 2.0 points" in text for text in result.decisions)


def test_a_teacher_with_its_classes_in_another_order_is_refused(tmp_path: Path) -> None:
    world = WithData(tmp_path, teacher_labels=tuple("dcba"))
    named = world.model.model.model_copy(update={"labels": tuple("abcd")})
    world.model = world.model.model_copy(update={"recipe": named})
    with pytest.raises(UserError, match="the same ones in another order"):
        world.quantized(max_drop=0.1)
