from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from edgekd.core.blobs import FolderBlobs
from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.errors import DeviceUnavailable, UserError
from edgekd.nn.build import module_from_bundle
from edgekd.runtimes.session import RUNTIMES, FloatArray, checked_feeds, open_bundle
from edgekd.testing.conformance_session import SessionConformance, Subject
from edgekd.testing.toy_graphs import toy_graph, toy_onnx_bundle
from edgekd.testing.toys import toy_bundle


def onnx_subject(runtime: str, folder: Path) -> Subject:
    blobs = FolderBlobs(folder / "blobs")
    bundle = toy_onnx_bundle(blobs, folder)

    def reference(images: FloatArray) -> FloatArray:
        (logits,) = ReferenceEvaluator(onnx.load(blobs.path(bundle.file("model.onnx")))).run(None, {"images": images})
        return np.asarray(logits)

    return Subject(runtime=runtime, bundle=bundle, blobs=blobs, reference=reference)


class TestOnnxRuntime(SessionConformance):
    @pytest.fixture
    def subject(self, tmp_path: Path) -> Subject:
        return onnx_subject("onnxruntime", tmp_path)


class TestOpenVino(SessionConformance):
    @pytest.fixture
    def subject(self, tmp_path: Path) -> Subject:
        return onnx_subject("openvino", tmp_path)


class TestTorch(SessionConformance):
    @pytest.fixture
    def subject(self, tmp_path: Path) -> Subject:
        blobs = FolderBlobs(tmp_path / "blobs")
        bundle = toy_bundle(blobs, tmp_path)
        module = module_from_bundle(bundle, blobs).double()

        def reference(images: FloatArray) -> FloatArray:
            import torch

            with torch.inference_mode():
                return module(torch.from_numpy(images).double()).numpy().astype(np.float32)

        return Subject(runtime="torch", bundle=bundle, blobs=blobs, reference=reference)


def test_every_runtime_is_under_the_conformance_suite() -> None:
    from tests.runtimes import test_engines, test_onnxruntime_web

    suites = {**vars(test_engines), **vars(test_onnxruntime_web), **globals()}.items()
    covered = {name for name, kind in suites if isinstance(kind, type) and issubclass(kind, SessionConformance)}
    wanted = {"onnxruntime": "TestOnnxRuntime", "openvino": "TestOpenVino", "torch": "TestTorch"}
    wanted |= {"tensorrt": "TestTensorRt", "executorch": "TestExecuTorch", "ncnn": "TestNcnn"}
    wanted |= {"litert": "TestLiteRt", "ort-web-node": "TestInNode", "ort-web-browser": "TestInBrowser"}
    assert set(wanted) == set(RUNTIMES)
    assert set(wanted.values()) <= covered


def test_every_runtime_answers_whether_it_can_work_without_raising() -> None:
    for name in RUNTIMES:
        found = RUNTIMES.get(name).availability()
        assert RUNTIMES.get(name).name == name
        assert found.ok or (found.reason and found.install)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_file_that_is_no_model_is_refused_by_name(runtime: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(UserError, match=r"cannot load .*broken\.onnx"):
        RUNTIMES.get(runtime).open(path)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_batch_fixed_in_the_graph_cannot_be_fixed_to_another(runtime: str, tmp_path: Path) -> None:
    graph = toy_graph()
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    path = tmp_path / "model.onnx"
    onnx.save(graph, path)
    with pytest.raises(UserError, match="cannot be fixed to 1"):
        RUNTIMES.get(runtime).open(path, batch=1)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_batch_axis_of_any_name_can_be_fixed(runtime: str, tmp_path: Path) -> None:
    graph = toy_graph()
    for value in (graph.graph.input[0], graph.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "batch_size"
    path = tmp_path / "model.onnx"
    onnx.save(graph, path)
    with RUNTIMES.get(runtime).open(path, batch=2) as session:
        assert session.infer({"images": np.zeros((2, 3, 8, 8), np.float32)})["logits"].shape == (2, 4)


def test_openvino_computes_in_float32_whatever_the_cpu_prefers(tmp_path: Path) -> None:
    subject = onnx_subject("openvino", tmp_path)
    with subject.open() as session:
        assert session.environment()["inference_precision"] == "f32"


def test_a_kind_that_no_runtime_takes_is_refused_with_what_it_runs(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path / "blobs")
    with pytest.raises(UserError, match=r"runs onnx bundles, but this is a torch bundle.*\n.*torch can run it"):
        open_bundle(toy_bundle(blobs, tmp_path), blobs, "onnxruntime")


def test_an_engine_without_a_gpu_is_a_missing_device(tmp_path: Path) -> None:
    if RUNTIMES.get("tensorrt").availability().ok:
        pytest.skip("TensorRT works on this machine")
    with pytest.raises(DeviceUnavailable, match="'tensorrt' cannot work here"):
        open_bundle(ModelBundle(kind=BundleKind.ENGINE), FolderBlobs(tmp_path), "tensorrt")


def test_the_torch_runtime_says_that_it_opens_bundles(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="weights need their recipe"):
        RUNTIMES.get("torch").open(tmp_path / "weights.safetensors")


def test_feeds_that_fit_pass_the_check() -> None:
    checked_feeds({"images": np.zeros((2, 3, 8, 8), np.float32)}, {"images": ("N", 3, 8, 8)})


def test_feeds_of_another_type_are_refused() -> None:
    with pytest.raises(UserError, match="must be float32 of shape Nx3x8x8, got float64"):
        checked_feeds({"images": np.zeros((2, 3, 8, 8))}, {"images": ("N", 3, 8, 8)})  # type: ignore[dict-item]
