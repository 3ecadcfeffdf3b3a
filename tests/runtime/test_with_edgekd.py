"""What edgekd writes, the runtime reads and runs to the same numbers; both name the fields of the format alike."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from edgekd_runtime import BundleError, Engine, Preprocessing, archive
from edgekd_runtime.bundle import Bundle
from edgekd_runtime.deploy import SCHEMA_VERSION, Deploy, EngineEntry

from edgekd.core.deployment import DeployedEngine, Deployment
from edgekd.core.preprocess import Preprocessing as Reference
from edgekd.data.transform import preprocess, resize_to_canvas
from edgekd.export import archive as writer
from edgekd.export.archive import pack
from edgekd.export.convert import CONVERTERS
from edgekd.export.convert_stage import ConvertConfig, ConvertStage
from edgekd.export.deployment import Shipped, note_from_bundle
from edgekd.export.manifest import MOST_FILES
from edgekd.export.package import verified_package, write_package
from edgekd.pipeline.request import BundleEngines
from edgekd.runtimes.session import open_bundle
from edgekd.targets.load import load_target
from edgekd.testing.conformance_session import need_runtime
from edgekd.testing.harness import make_context, make_inputs, run_stage
from edgekd.testing.toy_graphs import toy_onnx_bundle
from edgekd.testing.toys import toy_bundle
from tests.pipeline.delivered import delivered
from tests.pipeline.finished import results


def test_a_package_gives_the_logits_that_edgekd_computes(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    bundle = toy_onnx_bundle(ctx.blobs, ctx.scratch)
    folder = tmp_path / "out"
    write_package(bundle, ctx.blobs, folder, target=load_target("x86-cpu"), versions={}, extra={})
    pack(verified_package(folder), tmp_path / "model.edgekd")
    pixels = np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    from PIL import Image

    p = bundle.model.preprocessing
    images = preprocess(resize_to_canvas(Image.fromarray(pixels), p)[None], p)
    for path in (folder, tmp_path / "model.edgekd"):
        for runtime in ("onnxruntime", "openvino"):
            with (
                Engine.load(path, runtime=runtime) as engine,
                open_bundle(bundle, ctx.blobs, runtime, batch=1) as session,
            ):
                assert engine.info["digest"] == verified_package(folder).digest
                assert np.array_equal(engine.preprocess(pixels), images)
                wanted = session.infer({bundle.inputs[0].name: images})[bundle.outputs[0].name]
                assert np.allclose(engine.run(images), wanted, atol=1e-6)
                assert engine.labels == (bundle.model.labels or None)


def test_weights_that_run_nowhere_are_refused_with_a_way_out(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    write_package(toy_bundle(ctx.blobs, ctx.scratch), ctx.blobs, tmp_path / "out", target=None, versions={}, extra={})
    with pytest.raises(BundleError, match=r"has no deploy.json"):
        Engine.load(tmp_path / "out")


def test_both_name_the_fields_alike() -> None:
    assert {field.name for field in dataclasses.fields(EngineEntry)} == set(DeployedEngine.model_fields)
    assert {field.name for field in dataclasses.fields(Deploy)} | {"schema_version"} == set(Deployment.model_fields)
    assert {field.name for field in dataclasses.fields(Preprocessing)} == set(Reference.model_fields)
    assert Deployment.model_fields["schema_version"].default == SCHEMA_VERSION


def test_both_have_the_same_limits() -> None:
    assert archive.MAX_TOTAL_BYTES == writer.MOST_BYTES
    assert (archive.MAX_RATIO, archive.RATIO_FREE_BYTES) == (writer.MOST_RATIO, writer.RATIO_FROM_BYTES)
    assert archive.MAX_FILES == MOST_FILES + 1  # and the manifest


@pytest.mark.parametrize("engines", ["twins", "chosen"])
def test_what_a_run_hands_over_loads_with_its_twins(tmp_path: Path, engines: BundleEngines) -> None:
    run = results()
    delivered(run, tmp_path, engines=engines)
    pack(verified_package(tmp_path / "bundle"), tmp_path / "model.edgekd")
    with Bundle(tmp_path / "model.edgekd") as bundle:
        names = [entry.name for entry in bundle.deploy.engines]
        assert bundle.deploy.engines[0].chosen
    assert (len(names) > 1) == (engines == "twins")
    images = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    found = []
    for name in names:
        with Engine.load(tmp_path / "model.edgekd", engine=name, strict=True) as engine:
            assert engine.info["latency"]["origin"] == "measured"
            found.append(engine.run(images))
    for other in found[1:]:
        assert not np.allclose(other, found[0])  # the graphs have other weights: each is the one that was asked for


def test_what_is_converted_to_ncnn_runs_without_edgekd_to_the_same_logits(tmp_path: Path) -> None:
    need_runtime("ncnn")
    if not CONVERTERS.get("ncnn").availability().ok:
        pytest.skip("needs pnnx")
    ctx = make_context(tmp_path)
    model = toy_bundle(ctx.blobs, ctx.scratch)
    graph = toy_onnx_bundle(ctx.blobs, ctx.scratch)
    made = run_stage(ConvertStage(ConvertConfig(to="ncnn")), make_inputs(model=model), ctx).bundle
    target = load_target("raspberry-pi-5")
    notes = [
        dataclasses.replace(note_from_bundle(bundle, target), name=name)
        for name, bundle in (("onnx", graph), ("twin", made))
    ]
    chosen, twin = (Shipped(bundle=b, note=note) for b, note in zip((graph, made), notes, strict=True))
    write_package(graph, ctx.blobs, tmp_path / "out", target=target, versions={}, extra={}, chosen=chosen, twins=[twin])
    pack(verified_package(tmp_path / "out"), tmp_path / "model.edgekd")
    images = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)
    with open_bundle(made, ctx.blobs, "ncnn") as session:
        wanted = session.infer({made.inputs[0].name: images})[made.outputs[0].name]
    for path in (tmp_path / "out", tmp_path / "model.edgekd"):
        with Engine.load(path, engine="twin", strict=True) as engine:
            assert (engine.info["format"], engine.info["runtime"]) == ("ncnn", "ncnn")
            assert np.array_equal(engine.run(images), wanted)
