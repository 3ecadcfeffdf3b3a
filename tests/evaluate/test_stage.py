"""The evaluate node, with a real tiny model in PyTorch and with engines that are made up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgekd.evaluate.stage as stage_module
from edgekd.core.bundle import BundleKind, ModelBundle, TensorSpec
from edgekd.core.report import EvaluationReport
from edgekd.core.report_io import report_from_bundle
from edgekd.core.stage import Context, StageResult
from edgekd.data.dataset import Dataset
from edgekd.errors import DeviceUnavailable, UserError
from edgekd.evaluate.stage import EvaluateConfig, EvaluateStage
from edgekd.runtimes.session import RUNTIMES, Availability
from edgekd.tasks.classification import wilson_interval
from edgekd.testing.harness import make_context, make_inputs, run_stage
from edgekd.testing.toy_data import toy_dataset
from edgekd.testing.toys import toy_bundle, toy_recipe


class ByBrightness:
    """Says class 1 for bright images, class 0 for others, and remembers the batches that it saw."""

    input_names = ("images",)

    def __init__(self) -> None:
        self.seen: list[int] = []

    def infer(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        images = feeds["images"]
        self.seen.append(len(images))
        mean = images.mean(axis=(1, 2, 3))
        return {"logits": np.stack([-mean, mean, np.full_like(mean, -9), np.full_like(mean, -9)], axis=1)}

    def environment(self) -> dict[str, Any]:
        return {}

    def __enter__(self) -> ByBrightness:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class ByDarkness(ByBrightness):
    """Says the opposite."""

    def infer(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        return super().infer({"images": -feeds["images"]})


def graph(tags: dict[str, Any] | None = None) -> ModelBundle:
    return ModelBundle(
        kind=BundleKind.ONNX,
        inputs=(TensorSpec(name="images", shape=("N", 3, 8, 8)),),
        outputs=(TensorSpec(name="logits", shape=("N", 4)),),
        recipe=toy_recipe(),
        tags=tags or {},
    )


def opens(monkeypatch: pytest.MonkeyPatch, engines: Mapping[str, Any]) -> None:
    """Makes `open_bundle` give the engine of each runtime, or raise it."""

    def open_bundle(bundle: ModelBundle, blobs: object, runtime: str, **_: object) -> Any:
        engine = engines[runtime]
        if isinstance(engine, Exception):
            raise engine
        return engine

    monkeypatch.setattr(stage_module, "open_bundle", open_bundle)


def answers(monkeypatch: pytest.MonkeyPatch, runtime: str, availability: Availability) -> None:
    """Makes a runtime available, or not."""
    monkeypatch.setattr(type(RUNTIMES.get(runtime)), "availability", lambda _: availability)


def evaluate(
    ctx: Context, model: ModelBundle, config: EvaluateConfig, teacher: ModelBundle | None = None
) -> tuple[EvaluationReport, StageResult]:
    ports = {"model": model} | ({"teacher": teacher} if teacher is not None else {})
    result = run_stage(EvaluateStage(config), make_inputs(**ports), ctx)
    return report_from_bundle(result.bundle, EvaluationReport, ctx, "evaluate"), result


def context(folder: Path, data: Dataset) -> Context:
    return make_context(folder, resources={"data": data})


def test_top1_is_counted_over_whole_splits_with_its_wilson_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = toy_dataset(n=200)
    opens(monkeypatch, {"onnxruntime": ByBrightness()})
    report, result = evaluate(context(tmp_path, data), graph(), EvaluateConfig(candidate="student", batch=8))
    assert [(e.candidate, e.runtime, e.split, e.metric) for e in report.evaluations] == [
        ("student", "onnxruntime", "select", "top1"),
        ("student", "onnxruntime", "test", "top1"),
    ]
    for evaluation, split in zip(report.evaluations, (data.select, data.test), strict=True):
        hits = round(evaluation.value * len(split))
        assert evaluation.n == len(split)
        assert (evaluation.low, evaluation.high) == wilson_interval(hits, len(split))
    assert result.metrics == {
        "accuracy_select": report.evaluations[0].value,
        "accuracy_test": report.evaluations[1].value,
    }


def test_every_call_has_a_full_batch_and_the_padding_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, engine = toy_dataset(n=200), ByBrightness()
    opens(monkeypatch, {"onnxruntime": engine})
    config = EvaluateConfig(candidate="student", splits=("select",), batch=8)
    padded, _ = evaluate(context(tmp_path, data), graph(), config)
    assert set(engine.seen) == {8}
    assert len(data.select) % 8
    whole, _ = evaluate(context(tmp_path, data), graph(), config.model_copy(update={"batch": 1}))
    assert padded == whole


def test_the_runtime_that_select_chose_is_used_when_none_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opens(monkeypatch, {"openvino": ByBrightness()})
    answers(monkeypatch, "openvino", Availability(ok=True))
    model = graph({"runtime": "openvino"})
    report, _ = evaluate(context(tmp_path, toy_dataset()), model, EvaluateConfig(candidate="chosen", splits=("test",)))
    assert [e.runtime for e in report.evaluations] == ["openvino"]


@pytest.mark.parametrize(
    ("tagged", "why"),
    [("tensorrt", "that takes no onnx bundles"), ("openvino", "openvino: no such module")],
)
def test_a_chosen_runtime_that_cannot_run_it_here_gives_way_to_the_usual_one_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tagged: str, why: str
) -> None:
    opens(monkeypatch, {"onnxruntime": ByBrightness()})
    answers(monkeypatch, tagged, Availability(ok=False, reason="openvino: no such module"))
    config = EvaluateConfig(candidate="chosen", splits=("test",))
    report, result = evaluate(context(tmp_path, toy_dataset()), graph({"runtime": tagged}), config)
    assert [e.runtime for e in report.evaluations] == ["onnxruntime"]
    assert result.decisions == (f"chosen is evaluated in onnxruntime, not in the chosen {tagged}: {why}.",)


def test_a_device_that_is_not_there_is_said_with_its_own_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, "tensorrt", Availability(ok=False, reason="no GPU"))
    engine = graph({"runtime": "tensorrt"}).model_copy(update={"kind": BundleKind.ENGINE})
    with pytest.raises(DeviceUnavailable, match=r"student was not evaluated in tensorrt: .*: no GPU") as found:
        evaluate(context(tmp_path, toy_dataset()), engine, EvaluateConfig(candidate="student"))
    assert found.value.exit_code == 3


def test_without_labels_a_model_agrees_with_itself_and_it_is_called_agreement(tmp_path: Path) -> None:
    ctx = context(tmp_path, toy_dataset(labelled=False))
    model = toy_bundle(ctx.blobs, ctx.scratch)
    report, result = evaluate(ctx, model, EvaluateConfig(candidate="teacher"), teacher=model)
    assert {e.metric for e in report.evaluations} == {"agreement"}
    assert result.metrics == {"agreement_select": 1.0, "agreement_test": 1.0}


def test_a_model_that_always_answers_otherwise_does_not_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opens(monkeypatch, {"torch": ByBrightness(), "onnxruntime": ByDarkness()})
    ctx = context(tmp_path, toy_dataset(labelled=False))
    report, _ = evaluate(ctx, graph(), EvaluateConfig(candidate="student"), teacher=graph())
    assert [e.value for e in report.evaluations] == [0.0, 0.0]


def test_without_labels_and_without_a_teacher_it_refuses_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no labels, and there is no teacher"):
        evaluate(context(tmp_path, toy_dataset(labelled=False)), graph(), EvaluateConfig(candidate="student"))


def test_a_runtime_that_cannot_run_the_model_is_left_out_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opens(monkeypatch, {"onnxruntime": ByBrightness(), "openvino": UserError("no kernel")})
    config = EvaluateConfig(candidate="student", runtimes=("openvino", "onnxruntime"))
    report, result = evaluate(context(tmp_path, toy_dataset()), graph(), config)
    assert {e.runtime for e in report.evaluations} == {"onnxruntime"}
    assert result.decisions == ("student was not evaluated in openvino: no kernel",)


def test_it_is_an_error_when_no_runtime_can_run_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opens(monkeypatch, {"onnxruntime": UserError("no kernel")})
    with pytest.raises(UserError, match="student was not evaluated in onnxruntime: no kernel"):
        evaluate(context(tmp_path, toy_dataset()), graph(), EvaluateConfig(candidate="student"))


def test_a_graph_for_another_device_is_judged_with_exact_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opens(monkeypatch, {"onnxruntime": ByDarkness()})
    opened: list[Path] = []

    def exact(path: Path) -> ByBrightness:
        opened.append(path)
        return ByBrightness()

    monkeypatch.setattr(stage_module, "emulated", exact)
    ctx = make_context(tmp_path, resources={"data": toy_dataset()})
    model = tmp_path / "model.onnx"
    model.write_bytes(b"graph")
    bundle = graph().model_copy(update={"files": {"model.onnx": ctx.blobs.add(model)}})
    stage = EvaluateStage(EvaluateConfig(candidate="x", runtimes=("onnxruntime",), splits=("select",), exact=True))
    run_stage(stage, make_inputs(model=bundle), ctx)
    assert opened == [ctx.path(bundle, "model.onnx")]
