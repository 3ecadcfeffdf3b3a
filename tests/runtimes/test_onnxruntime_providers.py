"""Providers of ONNX Runtime: what they are asked, what is believed of them, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from edgekd.core.blobs import FolderBlobs
from edgekd.errors import DeviceUnavailable
from edgekd.runtimes.onnxruntime import CPU_PROVIDER, Provider
from edgekd.runtimes.onnxruntime_providers import ACCELERATORS, TENSORRT, AcceleratedOnnxRuntime, assignment
from edgekd.runtimes.session import RUNTIMES, open_bundle
from edgekd.testing.toy_graphs import toy_graph, toy_onnx_bundle


@dataclass
class Node:
    op_type: str
    name: str


@dataclass
class Part:
    ep_name: str
    nodes: list[Node]

    def get_nodes(self) -> list[Node]:
        return self.nodes


@dataclass
class Value:
    name: str
    shape: list[Any]


@dataclass
class FakeSession:
    """A library's session whose provider took what the test says."""

    providers: list[str]
    parts: list[Part] = field(default_factory=list)

    def get_providers(self) -> list[str]:
        return self.providers

    def get_provider_graph_assignment_info(self) -> list[Part]:
        return self.parts

    def get_inputs(self) -> list[Value]:
        return [Value("images", ["N", 3, 8, 8])]

    def get_outputs(self) -> list[Value]:
        return [Value("logits", ["N", 4])]


CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def opened(*parts: Part, providers: tuple[str, ...] = (CUDA, CPU)) -> dict[str, Any]:
    runtime = RUNTIMES.get("onnxruntime:cuda")
    assert isinstance(runtime, AcceleratedOnnxRuntime)
    session = FakeSession(list(providers), list(parts))
    return runtime.wrapped(session, None, folds_weights=False).environment()


def test_every_node_is_counted_and_those_that_fell_back_are_named() -> None:
    found = opened(Part(CUDA, [Node("Conv", "stem"), Node("Relu", "act")]), Part(CPU, [Node("TopK", "top")]))
    assert found["nodes_by_provider"] == {CUDA: 2, CPU: 1}
    assert found["fell_back"] == ["TopK top"]
    assert found["provider"] == "CUDAExecutionProvider, without 1 of 3 nodes"
    assert found["runtime"] == "onnxruntime:cuda"


def test_a_graph_that_is_wholly_on_its_provider_is_said_to_be() -> None:
    found = opened(Part(CUDA, [Node("Conv", "stem")]))
    assert (found["provider"], found["fell_back"]) == (CUDA, [])


def test_a_provider_that_takes_no_node_is_refused() -> None:
    with pytest.raises(DeviceUnavailable, match=r"took none of the 1 nodes.*CPUExecutionProvider"):
        opened(Part(CPU, [Node("Conv", "stem")]))


def test_a_provider_that_did_not_start_is_refused() -> None:
    with pytest.raises(DeviceUnavailable, match=r"could not start it, and would have run on CPUExecutionProvider"):
        opened(providers=(CPU,))


def test_an_older_library_that_cannot_tell_is_not_guessed_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(FakeSession, "get_provider_graph_assignment_info")
    assert "--layers records them" in str(opened()["nodes_by_provider"])


@pytest.mark.parametrize("name", RUNTIMES.on_devices)
def test_every_device_of_a_runtime_answers_whether_it_is_here(name: str) -> None:
    found = RUNTIMES.get(name).availability()
    assert RUNTIMES.get(name).name == name
    assert found.ok or (found.reason and found.install)
    assert name not in tuple(RUNTIMES)
    assert name in RUNTIMES


def test_names_of_accelerators_and_of_the_registry_are_the_same() -> None:
    names = {name for name in RUNTIMES.on_devices if name.startswith("onnxruntime:")}
    assert names == {f"onnxruntime:{accelerator.short}" for accelerator in ACCELERATORS}
    assert {accelerator.name for accelerator in ACCELERATORS} <= set(onnxruntime.get_all_providers())


def test_a_provider_that_the_build_lacks_is_a_missing_device_with_what_is_there(tmp_path: Path) -> None:
    if "QNNExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this build has QNN")
    blobs = FolderBlobs(tmp_path / "blobs")
    message = (
        r"'onnxruntime:qnn' cannot work here: this build of ONNX Runtime has no QNNExecutionProvider; it has .*CPU"
    )
    with pytest.raises(DeviceUnavailable, match=message):
        open_bundle(toy_onnx_bundle(blobs, tmp_path), blobs, "onnxruntime:qnn")


def test_the_cpu_stands_behind_every_accelerator_and_only_there() -> None:
    assert CPU_PROVIDER.asked(2) == [(CPU, {})]
    provider = Provider(name="X", options={"a": "1"}, threads_option="n")
    assert provider.asked(2) == [("X", {"a": "1", "n": "2"}), (CPU, {})]
    assert provider.asked(None)[0] == ("X", {"a": "1"})


@pytest.mark.parametrize(
    ("precision", "options"),
    [("fp32", {}), ("fp16", {"trt_fp16_enable": "1"}), ("int8", {"trt_int8_enable": "1", "trt_fp16_enable": "1"})],
)
def test_tensorrt_is_told_the_precision_of_the_graph(precision: str, options: dict[str, str]) -> None:
    assert TENSORRT.provider_for(precision).options == options


def test_the_library_tells_the_provider_of_each_node(tmp_path: Path) -> None:
    """The call that everything above relies on, of the library that is installed."""
    onnx.save(toy_graph(), tmp_path / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", options, providers=[CPU])
    found = assignment(session, CPU)
    if found is None:
        pytest.skip("ONNX Runtime before 1.24 does not tell")
    assert found.nodes[CPU] >= 3
    assert found.fell_back == ()
    other = assignment(session, CUDA)
    assert other is not None
    assert any(text.startswith(("Conv ", "FusedConv ")) for text in other.fell_back)


@pytest.mark.skipif(
    not RUNTIMES.get("onnxruntime:openvino").availability().ok,
    reason="needs onnxruntime-openvino in place of onnxruntime",
)
def test_openvinos_provider_runs_the_graph_and_agrees_with_the_cpu(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path / "blobs")
    bundle = toy_onnx_bundle(blobs, tmp_path)
    images = {"images": np.random.default_rng(0).standard_normal((1, 3, 8, 8), dtype=np.float32)}
    with open_bundle(bundle, blobs, "onnxruntime:openvino", threads=1, batch=1) as session:
        found, told = session.infer(images), session.environment()
    with open_bundle(bundle, blobs, "onnxruntime", threads=1, batch=1) as session:
        np.testing.assert_allclose(found["logits"], session.infer(images)["logits"], rtol=1e-3, atol=1e-3)
    assert told["provider"] == "OpenVINOExecutionProvider"
    assert told["fell_back"] == []
    graph = toy_graph()  # its provider has no Unique
    graph.graph.node[-1].output[0] = "inner"
    graph.graph.node.append(onnx.helper.make_node("Unique", ["inner"], ["logits"], "odd"))
    onnx.save(graph, tmp_path / "odd.onnx")
    with RUNTIMES.get("onnxruntime:openvino").open(tmp_path / "odd.onnx", threads=1, batch=1) as session:
        told = session.environment()
    assert told["provider"] == "OpenVINOExecutionProvider, without 1 of 9 nodes"
    assert told["fell_back"] == ["Unique odd"]
