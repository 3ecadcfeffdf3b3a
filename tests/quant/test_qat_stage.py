"""The stage of quantization-aware training, on graphs that export and calibration made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgekd.core.bundle import ModelBundle
from edgekd.core.stage import Context, StageResult
from edgekd.errors import BuildFailed, UserError
from edgekd.quant import qat_stage
from edgekd.quant.calibration_stage import CalibrationConfig, CalibrationStage
from edgekd.quant.ptq_stage import QuantizeConfig, QuantizeStage, Scheme
from edgekd.quant.qat import QatNetwork
from edgekd.quant.qat_stage import QatConfig, QatStage
from edgekd.runtimes.onnx_file import graph_from_file
from edgekd.runtimes.onnxruntime import emulated
from edgekd.testing.harness import make_context, make_inputs, run_stage
from edgekd.testing.toy_data import toy_dataset
from edgekd.testing.toy_graphs import toy_onnx_bundle
from edgekd.testing.toys import toy_bundle

DATA = toy_dataset(n=160)


def stages(
    folder: Path, scheme: Scheme = "ort-u8s8", *, labelled: bool = True
) -> tuple[Context, ModelBundle, ModelBundle]:
    """A context, the calibrated INT8 graph of a toy network, and its FP32 graph."""
    ctx = make_context(folder, resources={"data": DATA if labelled else toy_dataset(n=160, labelled=False)})
    full = toy_onnx_bundle(ctx.blobs, ctx.scratch)
    samples = run_stage(CalibrationStage(CalibrationConfig(samples=32)), make_inputs(model=full), ctx).bundle
    config = QuantizeConfig(scheme=scheme)
    return ctx, run_stage(QuantizeStage(config), make_inputs(model=full, calibration=samples), ctx).bundle, full


def trained(ctx: Context, model: ModelBundle, teacher: ModelBundle | None, **options: object) -> StageResult:
    config = QatConfig.parse({"epochs": 2, "batch_size": 32, "lr": 0.02, **options}, "test")
    ports = {"model": model} if teacher is None else {"model": model, "teacher": teacher}
    return run_stage(QatStage(config), make_inputs(**ports), ctx)


@pytest.mark.parametrize("scheme", ["ort-u8s8", "tensorrt-s8", pytest.param("openvino", marks=pytest.mark.slow)])
def test_every_scheme_trains_in_the_graph_that_calibration_made(tmp_path: Path, scheme: Scheme) -> None:
    ctx, model, full = stages(tmp_path, scheme)
    result = trained(ctx, model, full)
    before, after = (graph_from_file(ctx.path(b, "model.onnx")) for b in (model, result.bundle))
    assert list(before.graph.node) == list(after.graph.node)
    assert result.bundle.tags == {**model.tags, "qat": True}
    assert result.metrics["parity_agreement"] == 1.0
    assert float(str(result.metrics["parity_sqnr_db"])) > 100
    assert ("parity_here_sqnr_db" in result.metrics) == (scheme != "tensorrt-s8")
    assert not any("8-bit kernels on this CPU" in line for line in result.decisions)
    assert float(str(result.metrics["train_loss"])) > 0
    assert any("calibration placed" in line for line in result.decisions)


def test_a_torch_teacher_teaches_too_and_labels_alone_are_enough(tmp_path: Path) -> None:
    ctx, model, _ = stages(tmp_path)
    taught = trained(ctx, model, toy_bundle(ctx.blobs, ctx.scratch, seed=2))
    assert "agreement_select" in taught.metrics
    assert "agreement_select" not in trained(ctx, model, None).metrics


def test_without_labels_the_graph_is_distilled_and_agreement_is_reported(tmp_path: Path) -> None:
    ctx, model, full = stages(tmp_path, labelled=False)
    result = trained(ctx, model, full)
    assert "accuracy_select" not in result.metrics
    assert any("Agreement with the teacher on the select split" in line for line in result.decisions)


def test_averaged_ranges_end_in_the_graph_and_are_said(tmp_path: Path) -> None:
    ctx, model, full = stages(tmp_path)
    result = trained(ctx, model, full, ranges="average")
    assert any("followed their moving average and moved by" in line for line in result.decisions)
    assert result.metrics["parity_agreement"] == 1.0


def test_a_rerun_gives_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for place in ("a", "b"):
        ctx, model, full = stages(tmp_path / place)
        contents.append(trained(ctx, model, full).bundle.content)
    assert contents[0] == contents[1]


def test_a_training_that_lost_accuracy_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ctx, model, full = stages(tmp_path)
    measured = iter((0.9, 0.875))
    monkeypatch.setattr(qat_stage, "module_accuracy", lambda *_: next(measured))
    result = trained(ctx, model, full)
    assert result.metrics["accuracy_select_before"] == 0.9
    assert result.decisions[-1] == (
        "Accuracy on the select split went from 90.0 % to 87.5 %: 2.5 points worse than without training."
    )


def test_a_large_gradient_does_not_throw_a_trained_graph_away(tmp_path: Path) -> None:
    ctx, model, full = stages(tmp_path)
    hard: dict[str, object] = {"objective": "dkd", "lr": 0.1, "epochs": 4}
    held, thrown = (trained(ctx, model, full, **hard, **extra) for extra in ({}, {"grad_clip": None}))
    assert float(str(held.metrics["train_loss"])) < 10 < float(str(thrown.metrics["train_loss"])) / 10


def test_dead_layers_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ctx, model, full = stages(tmp_path)
    names = tuple(f"layer{index}" for index in range(7))
    monkeypatch.setattr(QatNetwork, "constant_activations", lambda _self, _images: names)
    said = trained(ctx, model, full).decisions[-1]
    assert "layer4 and 2 more" in said
    assert "dead" in said


def test_weights_whose_steps_a_bias_keeps_wide_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ctx, model, full = stages(tmp_path)
    monkeypatch.setattr(QatNetwork, "widened", lambda _self: ("block.weight[3]",))
    assert any("fits into 32 bits: block.weight[3]." in line for line in trained(ctx, model, full).decisions)


def test_an_fp32_graph_is_refused(tmp_path: Path) -> None:
    ctx, _, full = stages(tmp_path)
    with pytest.raises(UserError, match="trains an INT8 graph, but its input is fp32"):
        trained(ctx, full, None)


def test_an_objective_that_looks_inside_is_refused_and_others_are_named(tmp_path: Path) -> None:
    ctx, model, full = stages(tmp_path)
    with pytest.raises(UserError, match="reads embedding, but qat trains a graph") as caught:
        trained(ctx, model, full, objective="rkd")
    assert "kd" in str(caught.value.hint)


def test_an_objective_that_learns_from_small_changes_of_the_weights_is_refused(tmp_path: Path) -> None:
    ctx, model, full = stages(tmp_path)
    with pytest.raises(UserError, match="'tgeo' learns from small changes of the weights, and qat's") as caught:
        trained(ctx, model, full, objective="tgeo")
    assert "kd" in str(caught.value.hint)
    assert "tgeo" not in str(caught.value.hint)


def test_a_teacher_of_another_preprocessing_is_refused(tmp_path: Path) -> None:
    ctx, model, _ = stages(tmp_path)
    with pytest.raises(UserError, match="must see the same tensor"):
        trained(ctx, model, toy_bundle(ctx.blobs, ctx.scratch, size=16))


def written_wrong(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Breaks the export: one constant is written otherwise."""
    graph = QatNetwork.graph

    def wrong(self: QatNetwork) -> onnx.ModelProto:
        made = graph(self)
        (entry,) = (entry for entry in made.graph.initializer if entry.name == name)
        array = numpy_helper.to_array(entry)
        entry.CopyFrom(numpy_helper.from_array(change(array.copy()).astype(array.dtype), name))
        return made

    monkeypatch.setattr(QatNetwork, "graph", wrong)


@pytest.mark.parametrize(
    ("scheme", "name", "change"),
    [
        ("ort-u8s8", "head.weight_scale", lambda scale: scale * 1.1),
        ("ort-u8s8", "block_scale", lambda scale: scale * 1.1),
        ("ort-u8s8", "images_zero_point", lambda zero: zero + 1),
        ("ort-u8s8", "block.weight_quantized", lambda codes: codes + (np.arange(codes.size).reshape(codes.shape) == 7)),
        ("ort-u8s8", "stem.bias_quantized", lambda codes: codes + (np.arange(len(codes)) == 1)),
        ("tensorrt-s8", "head.weight", lambda weight: weight * 1.1),
        ("tensorrt-s8", "head.bias", lambda bias: bias * 1.1),
    ],
)
def test_a_number_that_is_written_otherwise_than_it_was_trained_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: Scheme, name: str, change: Callable[..., np.ndarray]
) -> None:
    ctx, model, full = stages(tmp_path, scheme)
    written_wrong(monkeypatch, name, change)
    with pytest.raises(BuildFailed, match=rf"other numbers than the network that was trained, in .*{name}"):
        trained(ctx, model, full)


def test_a_graph_that_deploys_otherwise_than_it_trained_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ctx, model, full = stages(tmp_path)
    written_wrong(monkeypatch, "head.weight_scale", lambda scale: scale * 4)
    monkeypatch.setattr(qat_stage, "require_as_trained", lambda *_: None)
    with pytest.raises(BuildFailed, match="gives other logits than the network that was trained"):
        trained(ctx, model, full)


def test_kernels_that_compute_otherwise_than_exact_rounding_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx, model, full = stages(tmp_path)
    # A graph that computes something else stands for kernels that compute it wrongly.
    other = ctx.path(toy_onnx_bundle(ctx.blobs, ctx.scratch, seed=1), "model.onnx")
    monkeypatch.setattr(qat_stage, "RUNTIME", SimpleNamespace(open=lambda _path: emulated(other)))
    result = trained(ctx, model, full)
    assert any("8-bit kernels on this CPU give other logits than exact rounding" in said for said in result.decisions)
    assert float(str(result.metrics["parity_here_sqnr_db"])) < 15 < float(str(result.metrics["parity_sqnr_db"]))


def test_a_graph_whose_nodes_changed_fails(tmp_path: Path) -> None:
    ctx, model, full = stages(tmp_path)
    result = StageResult(bundle=full)
    with pytest.raises(BuildFailed, match="changed nodes"):
        QatStage(QatConfig()).ensures(make_inputs(model=model), result, ctx)
    with pytest.raises(BuildFailed, match="changed no code"):
        QatStage(QatConfig()).ensures(make_inputs(model=model), StageResult(bundle=model), ctx)


def test_a_teacher_is_trained_along_with_a_graph_and_must_have_weights(tmp_path: Path) -> None:
    ctx, model, full = stages(tmp_path)
    result = trained(ctx, model, toy_bundle(ctx.blobs, ctx.scratch, seed=2), objective="dml")
    assert {"teacher_accuracy_select", "train_teacher_loss"} <= set(result.metrics)
    with pytest.raises(UserError, match="'dml' trains the teacher along, but the teacher is an ONNX graph"):
        trained(ctx, model, full, objective="dml")
