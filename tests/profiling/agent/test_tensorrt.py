"""The TensorRT adapter against bindings made by hand: what it asks for, what it refuses; the GPU is the host's memory.

The CUDA runtime is a small C library with the real signatures, so that pointers and sizes go through `ctypes` as they
would on a board. No GPU takes part: what a real TensorRT does with these calls is not shown here.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import platform
import shutil
import subprocess
import sys
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgekd.profiling.agent.engines import availability, open_engine
from edgekd.profiling.agent.wire import AgentError
from edgekd.runtimes.engines import cuda as cuda_module
from edgekd.runtimes.engines.cuda import Cuda

LIBRARY = """
#include <stdlib.h>
#include <string.h>
int cudaStreamCreate(void **stream) { *stream = (void *)0x1234; return 0; }
int cudaMalloc(void **place, size_t size) { *place = malloc(size); return size > 1000000 ? 2 : 0; }
int cudaFree(void *place) { free(place); return 0; }
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
    if (stream != (void *)0x1234 || (kind != 1 && kind != 2)) return 1;
    memcpy(to, from, size);
    return 0;
}
int cudaStreamSynchronize(void *stream) { return stream == (void *)0x1234 ? 0 : 1; }
static long recorded = 0;
static int timed = 0;
int cudaEventCreate(void **event) { *event = malloc(sizeof(long)); return 0; }
int cudaEventRecord(void *event, void *stream) {
    *(long *)event = ++recorded;
    return stream == (void *)0x1234 ? 0 : 1;
}
int cudaEventElapsedTime(float *ms, void *first, void *second) {
    *ms = 0.25f * (*(long *)second - *(long *)first) + 0.001f * timed++;
    return 0;
}
int cudaGetDevice(int *device) { *device = 0; return 0; }
int cudaDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 76 ? 7 : 8; return 0; }
int cudaRuntimeGetVersion(int *version) { *version = 12060; return 0; }
const char *cudaGetErrorString(int error) { return error == 2 ? "out of memory" : "invalid argument"; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "Orin", size); return 0; }
"""
HERE = "tensorrt-10.3.0/sm_87/Orin"
FINGERPRINT = {
    "schema_version": 1, "gpu": "Orin", "compute_capability": "8.7", "tensorrt": "10.3.0", "os": "linux",
    "arch": platform.machine(), "builder": "python", "onnx_sha256": "0" * 64,
    "engine_sha256": hashlib.sha256(b"engine").hexdigest(),
}  # fmt: skip


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA runtime whose device is this process."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler: apt-get install gcc")
    source, library = tmp_path / "cudart.c", tmp_path / "libcudart.so"
    source.write_text(LIBRARY)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True, timeout=60)
    monkeypatch.setattr(cuda_module, "_NAMES", (str(library),))
    monkeypatch.setattr(cuda_module, "DRIVER", str(library))
    monkeypatch.setattr(cuda_module.ctypes.util, "find_library", lambda name: None)


@dataclass
class Bindings:
    """Stands for the module `tensorrt`: an engine adds 1 to its input and gives it as its output.

    Attributes:
        kind: Type of the tensors.
        built: How often an engine was built.
        flags: Builder flags that were set.
        profiles: Shapes of the optimisation profiles.
    """

    kind: str = "FLOAT"
    built: int = 0
    parses: bool = True
    flags: list[str] = field(default_factory=list)
    profiles: list[Any] = field(default_factory=list)
    config: Any = None
    network_flags: int = 0
    __version__ = "10.3.0"
    NetworkDefinitionCreationFlag = SimpleNamespace(EXPLICIT_BATCH=0, STRONGLY_TYPED=1)
    BuilderFlag = SimpleNamespace(INT8="INT8", FP16="FP16")
    TensorIOMode = SimpleNamespace(INPUT="in", OUTPUT="out")
    ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
    LayerInformationFormat = SimpleNamespace(JSON="json")

    class IProfiler:
        """What TensorRT calls; like the real one it must be initialised by its subclass."""

        def __init__(self) -> None:
            self.initialised = True

    class ILogger:
        Severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0, VERBOSE=4, INFO=3)

        def __init__(self) -> None:
            self.initialised = True

    class Logger(ILogger):
        ERROR = 1

        def __init__(self, level: int) -> None:
            self.level = level

    def Builder(self, logger: object) -> Any:
        config = SimpleNamespace(set_flag=self.flags.append, add_optimization_profile=lambda profile: 0)
        self.config = config
        profile = SimpleNamespace(set_shape=lambda *shape: self.profiles.append(shape))
        return SimpleNamespace(
            create_network=self._network,
            create_builder_config=lambda: config,
            create_optimization_profile=lambda: profile,
            build_serialized_network=self._build,
        )

    def OnnxParser(self, network: object, logger: object) -> Any:
        error = SimpleNamespace(desc=lambda: "no such operator", node=lambda: 3)
        return SimpleNamespace(parse=lambda text, path: self.parses, num_errors=1, get_error=lambda index: error)

    def Runtime(self, logger: object) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=lambda text: Engine(self.kind) if text == b"engine" else None)

    def _network(self, flags: int) -> Any:
        self.network_flags = flags
        return SimpleNamespace(flags=flags)

    def _build(self, network: object, config: object) -> bytes:
        self.built += 1
        return b"engine"


class Engine:
    """Two tensors of three values."""

    num_io_tensors = 2

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def get_tensor_name(self, index: int) -> str:
        return ("images", "logits")[index]

    def get_tensor_mode(self, name: str) -> str:
        return {"images": "in", "logits": "out"}[name]

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=self.kind)

    def create_execution_context(self) -> Any:
        return Context(self.kind)

    def create_engine_inspector(self) -> Any:
        def information(form: str) -> str:
            assert (form, inspector.execution_context.kind) == ("json", self.kind)
            return json.dumps({"Layers": [{"Name": "conv", "LayerType": "CaskConvolution"}], "Bindings": []})

        inspector = SimpleNamespace(execution_context=None, get_engine_information=information)
        return inspector


class Context:
    """Computes in the memory whose addresses it was told."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.places: dict[str, int] = {}
        self.enqueue_emits_profile = True
        self.profiler: Any = None
        self.executed = 0

    def report_to_profiler(self) -> bool:
        assert self.profiler.initialised
        assert not self.enqueue_emits_profile
        self.profiler.report_layer_time("conv", 0.5 + self.executed)
        return self.executed > 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        return shape == (1, 3)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (1, 3)

    def set_tensor_address(self, name: str, place: int) -> None:
        self.places[name] = place

    def execute_async_v3(self, stream: int) -> bool:
        if stream != 0x1234:
            return False
        self.executed += 1
        if self.kind == "FLOAT":
            source, target = ((ctypes.c_float * 3).from_address(self.places[name]) for name in ("images", "logits"))
            for index in range(3):
                target[index] = source[index] + 1
        else:
            ctypes.memmove(self.places["logits"], self.places["images"], 6)
        return True


@pytest.fixture
def bindings(monkeypatch: pytest.MonkeyPatch) -> Bindings:
    made = Bindings()
    monkeypatch.setitem(sys.modules, "tensorrt", made)  # type: ignore[arg-type]
    return made


def spec(**changes: Any) -> dict[str, Any]:
    inputs = [{"name": "images", "shape": ["N", 3]}]
    return {
        "runtime": "tensorrt", "files": ["0" * 64], "kind": "onnx", "inputs": inputs, "threads": 1, "batch": 1,
        "precision": "int8", "fingerprint": None, **changes,
    }  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.write_bytes(b"engine")
    return path


def test_a_graph_is_built_once_run_and_its_outputs_come_back(
    device: None, bindings: Bindings, model: Path, tmp_path: Path
) -> None:
    from edgekd.profiling.agent.engines import input_values

    for _ in range(2):
        engine = open_engine(spec(), (model,), tmp_path / "engines")
        engine.run()
        expected = array("f", [value + 1 for value in input_values([1, 3], 0)])
        assert engine.outputs() == [pytest.approx(expected.tolist())]
        assert engine.facts()["provider"] == "Orin"
        assert engine.facts()["engine"] == HERE
        engine.close()
    assert bindings.built == 1
    assert (bindings.flags, bindings.network_flags) == ([], 0b11)  # explicit batch, and the types of the graph bind
    assert bindings.profiles == [("images", (1, 3), (1, 3), (1, 3))]


def test_the_time_on_the_device_lies_between_two_events_and_leaves_the_copies_out(
    device: None, bindings: Bindings, model: Path, tmp_path: Path
) -> None:
    engine = open_engine(spec(), (model,), tmp_path / "engines")
    found = engine.device_ns(3)
    assert found is not None
    assert found == [pytest.approx(250_000 + 1000 * call, abs=2) for call in range(3)]


def test_layers_are_what_the_inspector_says_with_the_times_that_the_profiler_hears(
    device: None, bindings: Bindings, model: Path, tmp_path: Path
) -> None:
    engine = open_engine(spec(), (model,), tmp_path / "engines")
    assert bindings.config.profiling_verbosity == "detailed"
    found = engine.layers(3)
    assert found is not None
    assert found["information"]["Layers"][0]["LayerType"] == "CaskConvolution"
    assert found["times_ms"] == {"conv": [1.5, 2.5, 3.5]}
    assert found["calls"] == 3


def test_half_precision_tensors_are_packed_and_unpacked(
    device: None, bindings: Bindings, model: Path, tmp_path: Path
) -> None:
    from edgekd.profiling.agent.engines import input_values

    bindings.kind = "HALF"
    engine = open_engine(spec(), (model,), tmp_path)
    engine.run()
    assert engine.outputs() == [pytest.approx(input_values([1, 3], 0).tolist(), rel=1e-3)]


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        (
            {"kind": "engine", "fingerprint": {**FINGERPRINT, "gpu": "Xavier", "compute_capability": "7.2"}},
            "FLOAT",
            r"does not fit the board: it was built for Xavier \(compute capability 7.2\), this is Orin",
        ),
        ({"kind": "engine", "fingerprint": None}, "FLOAT", "has no fingerprint of edgekd"),
        ({"kind": "engine", "fingerprint": {"schema_version": 1}}, "FLOAT", "fingerprint has no gpu"),
        (
            {"kind": "engine", "fingerprint": {**FINGERPRINT, "engine_sha256": "0" * 64}},
            "FLOAT",
            "was altered after it was built",
        ),
        ({"inputs": [{"name": "images", "shape": ["N", 5]}]}, "FLOAT", r"takes no input 'images' of shape \[1, 5\]"),
        ({}, "FP8", "has the type FP8, which is not supported"),
    ],
)
def test_an_engine_that_does_not_fit_is_refused_with_the_reason(
    device: None, bindings: Bindings, model: Path, tmp_path: Path, changes: dict[str, Any], kind: str, message: str
) -> None:
    bindings.kind = kind
    with pytest.raises(AgentError, match=message):
        open_engine(spec(**changes), (model,), tmp_path)


def test_an_engine_of_our_own_for_this_board_is_loaded(
    device: None, bindings: Bindings, model: Path, tmp_path: Path
) -> None:
    engine = open_engine(spec(kind="engine", fingerprint=FINGERPRINT), (model,), tmp_path)
    engine.run()
    assert len(engine.outputs()[0]) == 3
    assert bindings.built == 0


def test_a_damaged_engine_and_a_graph_that_does_not_parse_are_told_apart(
    device: None, bindings: Bindings, model: Path, tmp_path: Path
) -> None:
    model.write_bytes(b"damaged")
    own = {**FINGERPRINT, "engine_sha256": hashlib.sha256(b"damaged").hexdigest()}
    with pytest.raises(
        AgentError, match=r"on the board TensorRT 10\.3\.0 cannot read the engine: damaged, or of another version"
    ):
        open_engine(spec(kind="engine", fingerprint=own), (model,), tmp_path)
    bindings.parses = False
    with pytest.raises(AgentError, match="cannot take node 3: no such operator"):
        open_engine(spec(), (model,), tmp_path)


def test_a_cuda_call_that_fails_names_itself_and_the_reason(device: None) -> None:
    with pytest.raises(OSError, match=r"cudaMalloc failed: out of memory \(CUDA error 2\)"):
        Cuda().allocate(2_000_000)


def test_a_board_without_cuda_is_a_runtime_that_does_not_work(
    bindings: Bindings, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_module, "_NAMES", ("libnowhere.so",))
    monkeypatch.setattr(cuda_module.ctypes.util, "find_library", lambda name: None)
    with pytest.raises(AgentError, match=r"tensorrt does not work on the board: the CUDA runtime library"):
        open_engine(spec(), (model,), tmp_path)


def test_an_unknown_runtime_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(AgentError, match="knows no runtime 'tvm', only onnxruntime, tensorrt"):
        open_engine(spec(runtime="tvm"), (model,), tmp_path)


def test_what_is_missing_comes_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = availability("/opt/py")
    assert found["onnxruntime"] == {"ok": False, "version": None, "install": "/opt/py -m pip install onnxruntime"}
