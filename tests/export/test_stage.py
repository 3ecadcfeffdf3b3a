from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from torch import nn

from edgekd.core.bundle import BundleKind
from edgekd.errors import BuildFailed, UserError
from edgekd.export.parity import layers_of, module_logits
from edgekd.export.stage import ExportConfig, ExportStage
from edgekd.nn.build import PROGRAM_FILE, module_from_bundle
from edgekd.runtimes.samples import Samples, bundle_from_samples, random_images
from edgekd.runtimes.session import open_bundle
from edgekd.testing.harness import make_context, make_inputs, run_stage
from tests.export.conftest import Exported


def test_the_exported_graph_computes_what_the_module_computes(exported: Exported) -> None:
    images = random_images((3, 8, 8), samples=7, seed=5)
    with open_bundle(exported.result.bundle, exported.ctx.blobs, "onnxruntime") as session:
        found = session.infer({"images": images})["logits"]
    expected = module_logits(module_from_bundle(exported.torch, exported.ctx.blobs), images)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_bundle_is_described_as_the_conventions_say(exported: Exported) -> None:
    bundle = exported.result.bundle
    assert bundle.kind is BundleKind.ONNX
    assert set(bundle.files) == {"model.onnx"}
    assert bundle.tags == {"precision": "fp32", "scheme": "", "model": exported.torch.content}
    assert bundle.recipe == exported.torch.recipe
    assert (bundle.inputs, bundle.outputs) == (exported.torch.inputs, exported.torch.outputs)


def test_parity_is_reported_on_the_samples_that_were_given(exported: Exported) -> None:
    metrics = exported.result.metrics
    assert metrics["parity_samples"] == 6
    assert metrics["samples_origin"] == "real"
    assert metrics["parity_agreement"] == 1.0
    assert 0 <= float(str(metrics["parity_max_abs"])) < 1e-4
    assert exported.result.decisions == ()


@pytest.mark.usefixtures("reexport")
def test_a_rerun_gives_the_same_content_and_noise_stands_in_for_missing_samples(
    exported: Exported, tmp_path: Path
) -> None:
    ctx = make_context(tmp_path)
    for digest in exported.torch.files.values():
        ctx.blobs.add(exported.ctx.blobs.path(digest))
    result = run_stage(ExportStage(ExportConfig()), make_inputs(model=exported.torch), ctx)
    assert result.bundle.content == exported.result.bundle.content
    assert result.decisions == ("Parity was checked on 8 images of random noise: no samples were given.",)
    assert result.metrics["samples_origin"] == "random"


@pytest.mark.usefixtures("reexport")
def test_the_program_that_a_model_came_as_is_named_for_whoever_counts_its_layers(
    exported: Exported, tmp_path: Path
) -> None:
    path = tmp_path / PROGRAM_FILE
    path.write_text("a program")
    program = exported.ctx.blobs.add(path)
    model = exported.torch.model_copy(update={"files": {**exported.torch.files, PROGRAM_FILE: program}})
    result = run_stage(ExportStage(ExportConfig()), make_inputs(model=model, samples=exported.samples), exported.ctx)
    assert result.bundle.tags["program"] == program
    assert result.bundle.tags["model"] == model.content
    assert set(result.bundle.files) == {"model.onnx"}


def corrupt(monkeypatch: pytest.MonkeyPatch, source: Path, layer: str, value: float) -> None:
    """Makes the exporter give a graph in which one weight of `layer` is wrong."""

    def broken(_module: object, _shape: object, path: Path, **_options: object) -> None:
        graph = onnx.load(source)
        entry = next(item for item in graph.graph.initializer if item.name.startswith(f"{layer}.weight"))
        weights = numpy_helper.to_array(entry).copy()
        weights.flat[0] += value
        entry.CopyFrom(numpy_helper.from_array(weights, entry.name))
        onnx.save(graph, path)

    monkeypatch.setattr("edgekd.export.stage.onnx_from_module", broken)


def test_a_graph_that_differs_fails_and_names_the_first_layer_that_does(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = module_from_bundle(exported.torch, exported.ctx.blobs)
    convolutions = [name for name, part in module.named_modules() if type(part).__name__ == "Conv2d"]
    source = exported.ctx.path(exported.result.bundle, "model.onnx")
    for layer in (convolutions[0], convolutions[2]):
        corrupt(monkeypatch, source, layer, 1.0)
        with pytest.raises(BuildFailed, match=f"the first layer that differs is '{layer}'"):
            run_stage(
                ExportStage(ExportConfig()), make_inputs(model=exported.torch, samples=exported.samples), exported.ctx
            )


def test_a_tolerance_wide_enough_accepts_a_small_difference(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = module_from_bundle(exported.torch, exported.ctx.blobs)
    first = next(name for name, part in module.named_modules() if type(part).__name__ == "Conv2d")
    corrupt(monkeypatch, exported.ctx.path(exported.result.bundle, "model.onnx"), first, 1e-2)
    inputs = make_inputs(model=exported.torch, samples=exported.samples)
    with pytest.raises(BuildFailed, match="raise --atol or --rtol"):
        run_stage(ExportStage(ExportConfig()), inputs, exported.ctx)
    assert run_stage(ExportStage(ExportConfig(atol=1.0)), inputs, exported.ctx).metrics["parity_samples"] == 6


@pytest.mark.usefixtures("reexport")
def test_a_simplifier_that_fails_is_left_out_and_reported(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_model: object) -> object:
        raise RuntimeError("unsupported node")

    monkeypatch.setattr("onnxslim.slim", failing)
    inputs = make_inputs(model=exported.torch, samples=exported.samples)
    result = run_stage(ExportStage(ExportConfig()), inputs, exported.ctx)
    assert "The graph is not simplified: onnxslim failed with RuntimeError: unsupported node" in result.decisions[0]


@pytest.mark.usefixtures("reexport")
def test_a_simplifier_that_changes_the_result_is_left_out_and_reported(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: onnx.ModelProto) -> onnx.ModelProto:
        for entry in model.graph.initializer:
            if entry.data_type == onnx.TensorProto.FLOAT:
                entry.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(entry) * 2, entry.name))
        return model

    monkeypatch.setattr("onnxslim.slim", wrong)
    inputs = make_inputs(model=exported.torch, samples=exported.samples)
    result = run_stage(ExportStage(ExportConfig()), inputs, exported.ctx)
    assert "The graph is not simplified: The exported graph differs" in result.decisions[0]
    assert result.metrics["parity_agreement"] == 1.0


def test_samples_of_another_model_are_refused(exported: Exported) -> None:
    other = exported.torch.model.preprocessing.model_copy(update={"mean": (0.1, 0.1, 0.1)})
    samples = bundle_from_samples(
        Samples(random_images((3, 8, 8), samples=2, seed=0), None, "real"),
        preprocessing=other,
        source="a test",
        blobs=exported.ctx.blobs,
        scratch=exported.ctx.scratch,
    )
    with pytest.raises(UserError, match="preprocessed for another model"):
        run_stage(ExportStage(ExportConfig()), make_inputs(model=exported.torch, samples=samples), exported.ctx)


def test_layers_know_who_reads_them_even_when_one_works_in_place() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(256, 4)
    )
    layers = layers_of(module.eval(), random_images((3, 8, 8), samples=2, seed=0))
    assert [layer.name for layer in layers] == ["0", "1", "2", "3", "4"]
    assert layers[0].readers == (1,)
    assert 2 in layers[1].readers
    assert layers[1].output.min() < 0 <= layers[2].output.min()
