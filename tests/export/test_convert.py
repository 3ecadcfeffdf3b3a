"""The convert stage with a converter of its own, whose engine is an ONNX file that ONNX Runtime opens."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.stage import StageResult
from edgekd.errors import BuildFailed, DeviceUnavailable, UserError
from edgekd.export.convert import CONVERTERS, Conversion, Converted, Converter, unsupported
from edgekd.export.convert_stage import ConvertConfig, ConvertStage
from edgekd.runtimes.formats import MODEL_FILES, model_files, model_size_mib
from edgekd.runtimes.onnxruntime import OnnxRuntime
from edgekd.runtimes.session import RUNTIMES, Availability, open_bundle
from edgekd.targets.schema import Precision
from edgekd.testing.harness import make_context, make_inputs, run_stage
from edgekd.testing.toy_graphs import toy_onnx_bundle
from edgekd.testing.toys import toy_bundle


class Copying(Converter):
    """Copies the graph; `spoil` may change it on the way."""

    name: ClassVar[str] = "copy"
    tool: ClassVar[str] = "copier"
    takes: ClassVar[BundleKind] = BundleKind.ONNX
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "int8")
    found: ClassVar[Availability] = Availability(ok=True, version="1.0")
    spoil: ClassVar[Callable[[Path], None]] = staticmethod(lambda path: None)

    def availability(self) -> Availability:
        return self.found

    def convert(self, job: Conversion) -> Converted:
        path = job.scratch / "model.copy"
        shutil.copyfile(job.blobs.path(job.source.file("model.onnx")), path)
        (job.scratch / "left behind").touch()
        type(self).spoil(path)
        return Converted(files={path.name: path}, metrics={"copied": len(job.images)}, decisions=("It was copied.",))


class CopyRuntime(OnnxRuntime):
    name: ClassVar[str] = "copy"
    accepts: ClassVar[frozenset[BundleKind]] = frozenset({BundleKind.ENGINE})
    formats: ClassVar[frozenset[str]] = frozenset({"copy"})
    model_file: ClassVar[str] = "model.copy"


CONVERTER, RUNTIME = Copying(), CopyRuntime()


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONVERTERS._where, "copy", f"{__name__}:CONVERTER")
    monkeypatch.setitem(RUNTIMES._where, "copy", f"{__name__}:RUNTIME")
    monkeypatch.setattr("edgekd.runtimes.formats.MODEL_FILES", files := {**MODEL_FILES, "copy": ("model.copy",)})
    monkeypatch.setattr("edgekd.export.convert_stage.MODEL_FILES", files)


def convert(folder: Path, *, source: ModelBundle | None = None, **config: object) -> StageResult:
    ctx = make_context(folder)
    model = source or toy_onnx_bundle(ctx.blobs, ctx.scratch)
    stage = ConvertStage(ConvertConfig.parse({"to": "copy", **config}, "a test"))
    return run_stage(stage, make_inputs(model=model), ctx)


def test_the_engine_names_its_format_and_is_bound_to_no_device(tmp_path: Path) -> None:
    bundle = convert(tmp_path).bundle
    assert bundle.kind is BundleKind.ENGINE
    assert bundle.format == "copy"
    assert bundle.bound_to is None
    assert bundle.tags["converter"] == "copier 1.0"
    assert model_files(bundle) == tuple(bundle.files) == ("model.copy",)


def test_the_engine_takes_one_image_a_run(tmp_path: Path) -> None:
    bundle = convert(tmp_path).bundle
    assert bundle.inputs[0].shape == (1, 3, 8, 8)
    assert bundle.outputs[0].shape == (1, 4)


def test_parity_size_and_what_the_converter_counts_are_recorded(tmp_path: Path) -> None:
    result = convert(tmp_path)
    assert result.metrics["parity_agreement"] == 1.0
    assert result.metrics["parity_samples"] == result.metrics["copied"] == 8
    assert result.metrics["sqnr_db"] > 100  # type: ignore[operator]
    assert result.metrics["size_mib"] == model_size_mib(result.bundle, make_context(tmp_path).blobs) > 0
    assert result.decisions[0] == "It was copied."
    assert "random noise" in result.decisions[1]


def test_nothing_of_the_conversion_is_left_behind(tmp_path: Path) -> None:
    convert(tmp_path)
    assert [path.name for path in (tmp_path / "scratch").iterdir()] == ["model.onnx"]


def test_what_select_said_of_the_source_is_not_carried_to_the_engine(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    model = toy_onnx_bundle(ctx.blobs, ctx.scratch)
    model = model.model_copy(update={"tags": {**model.tags, "runtime": "openvino", "candidate": "x", "kept": 1}})
    tags = convert(tmp_path, source=model).bundle.tags
    assert tags["kept"] == 1
    assert not {"runtime", "candidate"} & set(tags)


def test_an_engine_opens_in_its_own_runtime_only(tmp_path: Path) -> None:
    bundle, blobs = convert(tmp_path).bundle, make_context(tmp_path).blobs
    with open_bundle(bundle, blobs, "copy") as session:
        assert session.infer({"images": np.zeros((1, 3, 8, 8), np.float32)})["logits"].shape == (1, 4)
    with pytest.raises(
        UserError, match=r"'tensorrt' runs tensorrt engines, but this is a copy engine.*\n.*copy can run"
    ):
        open_bundle(bundle, blobs, "tensorrt")
    with pytest.raises(UserError, match="'onnxruntime' runs onnx bundles, but this is a copy engine"):
        open_bundle(bundle, blobs, "onnxruntime")


def test_an_engine_without_a_format_is_tensorrts() -> None:
    assert ModelBundle(kind=BundleKind.ENGINE).format == "tensorrt"


def test_a_bundle_of_a_format_that_is_not_known_is_refused() -> None:
    with pytest.raises(UserError, match=r"format 'mnn'.*\n.*known: .*executorch"):
        model_files(ModelBundle(kind=BundleKind.ENGINE, tags={"format": "mnn"}))


def scaled(factor: float) -> Callable[[Path], None]:
    """Multiplies the classifier's weights, so that the engine computes something else."""

    def spoil(path: Path) -> None:
        graph = onnx.load(path)
        (head,) = (entry for entry in graph.graph.initializer if entry.name == "head.weight")
        head.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(head) * np.float32(factor), head.name))
        onnx.save(graph, path)

    return spoil


def test_an_engine_that_computes_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Copying, "spoil", staticmethod(scaled(1.02)))
    with pytest.raises(BuildFailed, match=r"In copy the fp32 engine differs from the model by up to .*\n.*--atol"):
        convert(tmp_path)


def test_a_looser_tolerance_takes_a_small_difference_and_none_takes_nonsense(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Copying, "spoil", staticmethod(scaled(1.02)))
    assert 20 < convert(tmp_path, rtol=0.1, atol=0.1).metrics["sqnr_db"] < 60  # type: ignore[operator]
    monkeypatch.setattr(Copying, "spoil", staticmethod(scaled(-1)))
    with pytest.raises(BuildFailed, match="dB of signal to noise"):
        convert(tmp_path / "b", rtol=100, atol=100)


def test_an_engine_that_its_runtime_cannot_open_is_a_failed_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Copying, "spoil", staticmethod(lambda path: path.write_bytes(b"no graph")))
    with pytest.raises(
        BuildFailed, match=r"copy cannot run the engine that was converted: ONNX Runtime .* cannot load"
    ):
        convert(tmp_path)


def test_a_bundle_of_another_kind_is_refused(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    with pytest.raises(UserError, match="takes onnx bundles, but this is a torch bundle"):
        convert(tmp_path, source=toy_bundle(ctx.blobs, ctx.scratch))


def test_a_precision_that_is_not_written_is_refused_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not write FP16; it writes fp32, int8"):
        convert(tmp_path, precision="fp16")


def test_a_quantized_source_is_refused(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    model = toy_onnx_bundle(ctx.blobs, ctx.scratch)
    with pytest.raises(UserError, match="from a float32 model, but this one is int8"):
        convert(tmp_path, source=model.model_copy(update={"tags": {"precision": "int8"}}))


def test_int8_without_samples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="INT8 needs calibration samples"):
        convert(tmp_path, precision="int8")


def test_a_missing_converter_says_what_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = Availability(ok=False, reason="copy is not installed", install="pip install copy")
    monkeypatch.setattr(Copying, "found", missing)
    with pytest.raises(DeviceUnavailable, match=r"converter 'copy' cannot work here: .*\n.*pip install copy"):
        convert(tmp_path)


def test_an_unsupported_operator_names_node_opset_message_and_alternatives() -> None:
    error = unsupported("copy", operator="Einsum", where="attn.einsum", opset="ONNX opset 20", message="no such layer")
    assert "copy has no Einsum at attn.einsum (ONNX opset 20); it says: no such layer" in error.message
    assert "onnxruntime, openvino" in str(error.hint)
    assert "copy" not in str(error.hint)


@pytest.mark.parametrize("name", CONVERTERS)
def test_every_converter_writes_the_format_of_a_runtime(name: str) -> None:
    converter = CONVERTERS.get(name)
    assert converter.name == name
    assert name in RUNTIMES
    assert name in RUNTIMES.get(name).formats
    assert RUNTIMES.get(name).model_file == MODEL_FILES[name][0]
    assert "fp32" in converter.precisions
    assert converter.availability().ok or converter.availability().install
