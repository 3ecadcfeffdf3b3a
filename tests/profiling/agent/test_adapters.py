"""The agent's adapters against libraries made by hand: what they ask for, what they refuse, what they time.

The real libraries are in tests/profiling/remote/test_engines.py, where they are installed; OpenVINO is here too.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgekd.core.blobs import FolderBlobs
from edgekd.profiling.agent import engines
from edgekd.profiling.agent.cpu import feeds_of
from edgekd.profiling.agent.engines import Engine, availability, open_engine
from edgekd.profiling.agent.wire import AgentError
from edgekd.runtimes.openvino import layers_from_counters
from edgekd.runtimes.session import open_bundle
from edgekd.testing.toy_graphs import toy_onnx_bundle

SHAPE = (1, 3, 2, 2)
IMAGE = [{"name": "images", "shape": ["N", *SHAPE[1:]]}]
FACTS = {"runtime", "version", "provider", "threads", "load_ms"}


def spec(runtime: str, **changed: Any) -> dict[str, Any]:
    given = {"runtime": runtime, "inputs": IMAGE, "threads": 2, "batch": 1, "precision": "fp32", "kind": "engine"}
    return {**given, **changed}


def module(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> ModuleType:
    """A module of this name, and packages above it, in the place of whatever is installed."""
    parts = name.split(".")
    for depth in range(1, len(parts)):
        above = ".".join(parts[:depth])
        if above not in sys.modules or not isinstance(sys.modules[above], _Fake):
            monkeypatch.setitem(sys.modules, above, _Fake(above))
    made = _Fake(name)
    made.__dict__.update(content)
    monkeypatch.setitem(sys.modules, name, made)
    return made


class _Fake(ModuleType):
    __path__: list[str] = []  # noqa: RUF012 - what makes a module a package


def ran(engine: Engine) -> list[list[float]]:
    """The values of a run, after what every engine promises was looked at."""
    engine.run()
    assert engine.facts().keys() >= FACTS
    assert engine.device_ns(2) is None
    found = engine.outputs()
    assert all(isinstance(value, float) for values in found for value in values)
    engine.close()
    return found


class Mat:
    def __init__(self, pixels: Any) -> None:
        self.pixels = pixels


class Net:
    """Adds up each channel of its image; says what its `.param` holds where that is no network."""

    made: list[Net] = []  # noqa: RUF012 - of the test that runs

    def __init__(self) -> None:
        self.opt = SimpleNamespace()
        self.files: list[str] = []
        Net.made.append(self)

    def load_param(self, path: str) -> int:
        self.files.append(path)
        text = Path(path).read_text()
        if text != "network":
            sys.stderr.write(f"[0 ncnn.cpp] {text}\n")
        return int(text != "network")

    def load_model(self, path: str) -> int:
        self.files.append(path)
        return 0

    def input_names(self) -> list[str]:
        return ["in0"]

    output_names = input_names

    def create_extractor(self) -> Net:
        return self

    def input(self, name: str, mat: Mat) -> int:
        self.sums = mat.pixels.sum(axis=(1, 2))
        return 0

    def extract(self, name: str) -> tuple[int, Any]:
        return 0, self.sums


def test_ncnn_is_given_both_files_and_the_settings_that_are_timed_here_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module(monkeypatch, "ncnn", Net=Net, Mat=Mat, __version__="1.fake", cpu_support_arm_asimdhp=lambda: False)
    Net.made = []
    paths = (tmp_path / "param", tmp_path / "bin")
    paths[0].write_text("network")
    engine = open_engine(spec("ncnn", precision="fp16"), paths, tmp_path)
    (net,) = Net.made
    assert engine.layers(2) is None
    assert net.files == [str(path) for path in paths]
    assert (net.opt.num_threads, net.opt.use_vulkan_compute, net.opt.use_fp16_arithmetic) == (2, False, True)
    assert engine.facts()["arithmetic"] == "float32"  # this CPU cannot do it, whatever was allowed
    (image,) = feeds_of(spec("ncnn"))["images"]
    np.testing.assert_allclose(ran(engine), [image.sum(axis=(1, 2))], rtol=1e-6)
    paths[0].write_text("layer Gelu not exists")
    with pytest.raises(AgentError, match=r"ncnn 1\.fake cannot load the model: layer Gelu not exists"):
        open_engine(spec("ncnn"), paths, tmp_path)


class Interpreter:
    """Gives back the first values of its image, in the integers of the file."""

    told: dict[str, Any] = {"dtype": np.int8, "quantization": (0.5, 10)}  # noqa: RUF012 - of the test that runs

    def __init__(self, model_path: str, num_threads: int) -> None:
        if Path(model_path).read_text() != "file":
            raise ValueError("Model provided has model identifier 'x'")
        self.threads = num_threads

    def allocate_tensors(self) -> None:
        return

    def get_input_details(self) -> list[dict[str, Any]]:
        return [{"name": "x", "index": 0, "shape": np.array(SHAPE), **self.told}]

    def get_output_details(self) -> list[dict[str, Any]]:
        return [{"name": "y", "index": 1, **self.told}]

    def _get_ops_details(self) -> list[dict[str, str]]:
        return [{"op_name": "DELEGATE"}, {"op_name": "PAD"}]

    def set_tensor(self, index: int, value: Any) -> None:
        assert value.dtype == self.told["dtype"]
        self.fed = value

    def invoke(self) -> None:
        self.answer = self.fed.reshape(1, -1)[:, :2]

    def get_tensor(self, index: int) -> Any:
        return self.answer


def test_litert_rounds_the_image_and_the_logits_within_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module(monkeypatch, "ai_edge_litert.interpreter", Interpreter=Interpreter)
    path = tmp_path / "model"
    path.write_text("file")
    engine = open_engine(spec("litert"), (path,), tmp_path)
    facts = engine.facts()
    assert (facts["provider"], facts["xnnpack_parts"], facts["operators"]) == ("XNNPACK", 1, 1)
    assert facts["input_type"] == "int8"
    first = feeds_of(spec("litert"))["images"].reshape(-1)[:2]
    np.testing.assert_allclose(ran(engine), [np.rint(first / 0.5) * 0.5])
    path.write_text("no file")
    with pytest.raises(AgentError, match="cannot load the model: Model provided has model identifier 'x'"):
        open_engine(spec("litert"), (path,), tmp_path)


class Program:
    """Its method doubles its image."""

    sizes: tuple[int, ...] = SHAPE

    def load_method(self, name: str) -> Any:
        if name != "forward":
            raise KeyError(name)
        meta = SimpleNamespace(sizes=lambda: list(self.sizes), dtype=lambda: 6)
        metadata = SimpleNamespace(num_inputs=lambda: 1, input_tensor_meta=lambda index: meta)
        return SimpleNamespace(metadata=metadata, execute=lambda inputs: [2 * inputs[0]])


class Pool:
    """The library's threads."""

    def __init__(self) -> None:
        self.count, self.set_to = 8, list[int]()

    def _threadpool_get_thread_count(self) -> int:
        return self.count

    def _unsafe_reset_threadpool(self, count: int) -> None:
        self.count = count
        self.set_to.append(count)


def test_executorch_sets_its_threads_once_and_refuses_a_program_for_other_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(path: Path) -> Program:
        if path.read_text() != "program":
            raise RuntimeError("program identifier 'xx' is wrong")
        return Program()

    pool, path = Pool(), tmp_path / "model"
    library = SimpleNamespace(
        get=lambda: library, load_program=load, backend_registry=SimpleNamespace(is_available=lambda name: True)
    )
    module(monkeypatch, "executorch.extension.pybindings", portable_lib=pool)
    module(monkeypatch, "executorch.runtime", Runtime=library)
    path.write_text("program")
    engine = open_engine(spec("executorch"), (path,), tmp_path)
    open_engine(spec("executorch"), (path,), tmp_path).close()
    assert pool.set_to == [2]  # under a loaded program it would crash
    np.testing.assert_allclose(ran(engine), [2 * feeds_of(spec("executorch"))["images"].reshape(-1)], rtol=1e-6)
    monkeypatch.setattr(Program, "sizes", (1, 3, 224, 224))
    with pytest.raises(
        AgentError, match=r"the program takes \(1, 3, 224, 224\), and its bundle says \(1, 3, 2, 2\) in float32"
    ):
        open_engine(spec("executorch"), (path,), tmp_path)
    path.write_text("no program")
    with pytest.raises(AgentError, match="cannot load the model: program identifier 'xx' is wrong"):
        open_engine(spec("executorch"), (path,), tmp_path)


@pytest.mark.parametrize("changed", [{"batch": 4}, {"inputs": [*IMAGE, {"name": "sizes", "shape": [1, 2]}]}])
def test_an_engine_of_one_image_a_run_is_given_one(
    changed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module(monkeypatch, "ai_edge_litert.interpreter", Interpreter=Interpreter)
    (tmp_path / "model").write_text("file")
    with pytest.raises(AgentError, match="litert takes one image a run here"):
        open_engine(spec("litert", **changed), (tmp_path / "model",), tmp_path)


@pytest.mark.needs("openvino")
def test_openvino_computes_what_the_session_of_this_machine_does(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="needs openvino: pip install openvino")
    blobs = FolderBlobs(tmp_path / "blobs")
    bundle = toy_onnx_bundle(blobs, tmp_path)
    path = blobs.path(bundle.file("model.onnx"))
    given = spec("openvino", kind="onnx", inputs=[{"name": i.name, "shape": list(i.shape)} for i in bundle.inputs])
    engine = open_engine(given, (path,), tmp_path)
    assert (engine.facts()["provider"], engine.facts()["inference_precision"]) == ("CPU", "f32")
    told = engine.layers(4)
    assert told is not None
    layers = layers_from_counters(told["counters"], "CPU")
    assert "Convolution" in {layer.op for layer in layers}
    assert all(layer.median_ms >= 0 for layer in layers)
    with open_bundle(bundle, blobs, "openvino", threads=2, batch=1) as session:
        (expected,) = session.infer(feeds_of(given)).values()
    np.testing.assert_allclose(ran(engine), [expected.reshape(-1)], rtol=1e-6)
    assert not engine._memory  # type: ignore[attr-defined]  # arrays that it was fed through go with the model
    path.chmod(0o644)
    path.write_bytes(b"no graph")
    with pytest.raises(AgentError, match=r"OpenVINO [\d.]+ cannot load the model"):
        open_engine(given, (path,), tmp_path)


def test_a_board_is_told_how_to_install_each_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    found = availability("/opt/python3")
    assert {name: entry["ok"] for name, entry in found.items()} == dict.fromkeys(engines.ADAPTERS, False)
    assert found["litert"]["install"] == "/opt/python3 -m pip install ai-edge-litert"
    assert found["tensorrt"]["install"] == "sudo apt-get install python3-libnvinfer"
