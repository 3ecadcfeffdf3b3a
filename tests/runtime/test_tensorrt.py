"""TensorRT engines: only our own that fit are loaded, others are built here; against stand-ins of binding and CUDA."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgekd_runtime import Engine, EngineError, FallbackWarning, cuda
from edgekd_runtime import tensorrt as module
from edgekd_runtime import tensorrt_build as building
from edgekd_runtime.bundle import Bundle
from edgekd_runtime.fingerprint import Device

from edgekd.runtimes.engines.settings import INT8_FP16
from edgekd.runtimes.fingerprint import read_fingerprint, require_own_engine
from tests.runtime.bundles import entry, graph_bytes, write_bundle, write_manifest
from tests.runtime.fake_tensorrt import build_cuda, write_binding

GRAPH = "engines/graph/model.onnx"
SETTINGS = {
    "inputs": [{"name": "images", "min": [1, 3, 8, 8], "opt": [1, 3, 8, 8], "max": [4, 3, 8, 8]}],
    "precision": "int8",
    "workspace_mib": 64,
    "version_compatible": False,
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_cuda(tmp_path_factory.mktemp("cuda"))


@pytest.fixture
def board(tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A device with a GPU, as far as this process and those that it starts can tell; a call changes its TensorRT."""
    monkeypatch.setattr(cuda, "DRIVER", str(library))
    monkeypatch.setattr(cuda, "_PLACES", (f"{library.parent}/",))
    monkeypatch.setattr(cuda.ctypes.util, "find_library", lambda name: None)
    monkeypatch.setattr(building, "TRTEXEC_PLACES", ())
    monkeypatch.setenv("PATH", str(tmp_path / "programs"))
    monkeypatch.syspath_prepend(str(tmp_path / "binding"))

    def install(version: str = "10.3.0", *, builder: bool = True) -> None:
        write_binding(tmp_path / "binding", version, builder=builder)
        monkeypatch.delitem(sys.modules, "tensorrt", raising=False)

    install()
    yield install
    sys.modules.pop("tensorrt", None)


def _plan(**changes: Any) -> bytes:
    return json.dumps({"max_batch": 2, "host_code": False, **changes}).encode()


def _bundle(folder: Path, *, plan: bytes | None = None, cache: bytes = b"timings", **changes: Any) -> Path:
    """An engine that was built on an Orin with TensorRT 10.3, its graph, and ONNX Runtime as a last resort."""
    plan = _plan() if plan is None else plan
    fingerprint = {
        "schema_version": 1,
        "gpu": "Orin",
        "compute_capability": "8.7",
        "tensorrt": "10.3.0",
        "os": platform.system().lower(),
        "arch": platform.machine(),
        "engine_sha256": hashlib.sha256(plan).hexdigest(),
        "settings": SETTINGS,
        "version_compatible": False,
        "hardware_compatible": False,
        **changes,
    }
    engines = [
        entry(
            "trt",
            format="tensorrt",
            files={"model.engine": "model.engine"},
            runtimes=["tensorrt"],
            precision="int8",
            fingerprint="model.engine.json",
            source="graph",
            timing_cache="timing.cache",
        ),
        entry("graph", files={"model.onnx": GRAPH}, runtimes=["onnxruntime"], precision="int8", chosen=False),
    ]
    files = {
        "model.engine": plan,
        "model.engine.json": json.dumps(fingerprint).encode(),
        "timing.cache": cache,
        GRAPH: graph_bytes(),
    }
    return write_bundle(folder, engines, files)


def _strict(path: Path, cache: Path, **options: Any) -> Engine:
    return Engine.load(path, engine="trt", strict=True, cache=cache, **options)


def test_an_engine_that_fits_runs_without_torch_and_without_a_word(board: Any, tmp_path: Path) -> None:
    engine = _strict(_bundle(tmp_path / "b"), tmp_path / "cache")
    images = np.random.default_rng(0).standard_normal((5, 3, 8, 8)).astype(np.float32)
    wanted = images.mean(axis=(1, 2, 3))[:, None] * np.arange(1, 5)
    assert np.allclose(engine.run(images), wanted, atol=1e-5)  # the engine takes 2 at a time
    assert np.allclose(engine.run(images[:1]), wanted[:1], atol=1e-5)
    info = engine.info
    assert (info["provider"], info["version"], info["origin"]) == ("Orin", "10.3.0", "the bundle")
    engine.close()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"gpu": "NVIDIA A100"}, r"it was built for NVIDIA A100 \(compute capability 8.7\), this is Orin"),
        ({"compute_capability": "7.2"}, r"compute capability 7.2"),
        ({"tensorrt": "8.6.2"}, r"it needs TensorRT 8.6.2, here is 10.3.0"),
        ({"arch": "sparc"}, r"it was built on \w+ sparc"),
        ({"multiprocessors": 8}, r"an? Orin with 8 multiprocessors, this one has 16"),
        ({"engine_sha256": "0" * 64}, r"its fingerprint belongs to another file"),
        ({"schema_version": 7}, r"has the schema 7"),
        ({"gpu": "A", "compute_capability": "7.5", "hardware_compatible": True}, r"for GPUs from Ampere on"),
    ],
)
def test_an_engine_that_does_not_fit_is_refused_with_the_reason(
    board: Any, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    path = _bundle(tmp_path / "b", **changes)
    with pytest.raises(EngineError, match=rf"{reason}.*rebuild=True"):
        _strict(path, tmp_path / "cache")
    with pytest.warns(FallbackWarning, match=reason):
        assert Engine.load(path, cache=tmp_path / "cache").info["engine"] == "graph"


@pytest.mark.parametrize(
    "changes",
    [
        {"tensorrt": "10.0.1", "version_compatible": True},
        {"gpu": "NVIDIA A100", "compute_capability": "8.0", "hardware_compatible": True},
        {"multiprocessors": 16},
        {"tensorrt": "10.3.0.26"},
    ],
)
def test_compatible_engines_load_elsewhere(board: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    plan = _plan(host_code=bool(changes.get("version_compatible")))  # such plans need permission to run their own code
    assert _strict(_bundle(tmp_path / "b", plan=plan, **changes), tmp_path / "cache").info["origin"] == "the bundle"


def test_an_engine_of_another_network_is_refused(board: Any, tmp_path: Path) -> None:
    path = _bundle(tmp_path / "b")
    data = json.loads((path / "deploy.json").read_text())
    data["outputs"][0]["name"] = "boxes"
    (path / "deploy.json").write_text(json.dumps(data))
    write_manifest(path)
    with pytest.raises(EngineError, match=r"outputs \['logits'\], expected \('images', 'boxes'\)"):
        _strict(path, tmp_path / "cache")


def test_bytes_that_are_no_engine_are_refused(board: Any, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"TensorRT 10.3.0 cannot read the engine"):
        _strict(_bundle(tmp_path / "b", plan=b"\0rubbish"), tmp_path / "cache")


def test_an_engine_without_a_fingerprint_is_never_loaded(board: Any, tmp_path: Path) -> None:
    engines = [entry("trt", format="tensorrt", files={"model.engine": "model.engine"}, runtimes=["tensorrt"])]
    path = write_bundle(tmp_path / "b", engines, {"model.engine": _plan()})
    with pytest.raises(EngineError, match=r"no fingerprint.*no graph to build it from"):
        _strict(path, tmp_path / "cache")


@pytest.mark.parametrize(
    ("version", "network_flags", "flags"), [("8.6.2", 1, [1, 0]), ("10.3.0", 2, []), ("11.0.0", 2, [])]
)
def test_it_is_built_here_when_asked_and_kept(
    board: Any, tmp_path: Path, version: str, network_flags: int, flags: list[int]
) -> None:
    board(version)
    path, cache = _bundle(tmp_path / "b", gpu="NVIDIA A100"), tmp_path / "cache"
    built = _strict(path, cache, rebuild=True)
    assert built.info["origin"].startswith("built here, because it ")
    assert "it was built for NVIDIA A100" in built.info["origin"]
    (folder,) = cache.iterdir()
    plan = json.loads((folder / "model.engine").read_bytes())
    assert (plan["network_flags"], plan["flags"], plan["pool"]) == (network_flags, flags, 64 << 20)
    assert plan["profile"]["images"][2] == [4, 3, 8, 8]
    assert plan["cache"] == "timings"
    assert (folder / "timing.cache").read_bytes() == b"timings+"
    again = _strict(path, cache)  # without being asked: it lies there already
    assert again.info["origin"] == "the cache"
    images = np.ones((3, 3, 8, 8), dtype=np.float32)
    assert np.array_equal(again.run(images), built.run(images))


def test_its_fingerprint_is_one_that_edgekd_reads(board: Any, tmp_path: Path) -> None:
    _strict(_bundle(tmp_path / "b", gpu="A"), tmp_path / "cache", rebuild=True)
    (folder,) = (tmp_path / "cache").iterdir()
    found = read_fingerprint(folder / "model.engine.json")
    assert (found.gpu, found.builder, found.onnx_sha256) == (
        "Orin",
        "python",
        hashlib.sha256(graph_bytes()).hexdigest(),
    )
    require_own_engine(found, folder / "model.engine")


def test_the_timing_cache_of_another_device_is_left_out(board: Any, tmp_path: Path) -> None:
    _strict(_bundle(tmp_path / "b", gpu="A", cache=b"other gpu"), tmp_path / "cache", rebuild=True)
    (folder,) = (tmp_path / "cache").iterdir()
    assert json.loads((folder / "model.engine").read_bytes())["cache"] == ""


def test_another_tensorrt_is_another_engine_in_the_cache(board: Any, tmp_path: Path) -> None:
    path, cache = _bundle(tmp_path / "b", gpu="A"), tmp_path / "cache"
    _strict(path, cache, rebuild=True)
    board("10.4.0")
    with pytest.raises(EngineError, match="rebuild=True"):
        _strict(path, cache)


def test_a_damaged_engine_in_the_cache_is_not_loaded(board: Any, tmp_path: Path) -> None:
    path, cache = _bundle(tmp_path / "b", gpu="A"), tmp_path / "cache"
    _strict(path, cache, rebuild=True)
    (folder,) = cache.iterdir()
    (folder / "model.engine").write_bytes(_plan())
    with pytest.raises(EngineError, match="rebuild=True"):
        _strict(path, cache)


def test_a_cache_that_others_may_write_to_is_not_trusted(board: Any, tmp_path: Path) -> None:
    path, cache = _bundle(tmp_path / "b", gpu="A"), tmp_path / "cache"
    _strict(path, cache, rebuild=True)
    cache.chmod(0o777)
    with pytest.raises(EngineError, match="engines are native code"):
        _strict(path, cache)


@pytest.mark.parametrize(
    ("what", "reason"),
    [("crash", r"could not build the engine \(code 11\)"), ("fail", r"the build failed"), ("hang", r"longer than 0")],
)
def test_a_build_that_goes_wrong_leaves_nothing_and_falls_back(
    board: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, reason: str
) -> None:
    monkeypatch.setenv("FAKE_TRT", what)
    if what == "hang":
        monkeypatch.setattr(building.build, "__defaults__", (0.4,))
    path, cache = _bundle(tmp_path / "b", gpu="A"), tmp_path / "cache"
    with pytest.warns(FallbackWarning, match=reason):
        assert Engine.load(path, rebuild=True, cache=cache).info["engine"] == "graph"
    assert list(cache.iterdir()) == []


def test_a_graph_that_cannot_be_parsed_is_said_in_tensorrts_words(board: Any, tmp_path: Path) -> None:
    engines = [entry("graph", files={"model.onnx": "bundle.json"}, runtimes=["tensorrt"])]
    with pytest.raises(EngineError, match="cannot parse the graph: no such operator"):
        Engine.load(write_bundle(tmp_path / "b", engines), rebuild=True, cache=tmp_path / "cache")


def test_an_engine_is_built_from_a_graph_that_was_meant_for_tensorrt(board: Any, tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "b", [entry("graph", runtimes=["tensorrt", "onnxruntime"], precision="fp16")])
    with pytest.warns(FallbackWarning, match="TensorRT has to build an engine"):
        assert Engine.load(path, cache=tmp_path / "cache").info["runtime"] == "onnxruntime"
    engine = Engine.load(path, strict=True, rebuild=True, cache=tmp_path / "cache")
    assert engine.info["runtime"] == "tensorrt"
    assert engine.run(np.ones((3, 3, 8, 8), np.float32)).shape == (3, 4)  # built for 1, called three times


def test_trtexec_builds_where_the_binding_cannot(board: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board(builder=False)
    with pytest.raises(EngineError, match="there is no trtexec"):
        _strict(_bundle(tmp_path / "b", gpu="A"), tmp_path / "cache", rebuild=True)
    program = tmp_path / "trtexec"
    plan = _plan().decode()
    program.write_text(
        f"#!{sys.executable}\nimport sys\n"
        "engine = next(w for w in sys.argv if w.startswith('--saveEngine=')).split('=')[1]\n"
        f"open(engine, 'w').write('''{plan}''')\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(building, "TRTEXEC_PLACES", (str(program),))
    assert _strict(tmp_path / "b", tmp_path / "cache", rebuild=True).info["origin"].startswith("built here")
    (folder,) = (tmp_path / "cache").iterdir()
    assert json.loads((folder / "model.engine.json").read_text())["builder"] == "trtexec"


def test_trtexec_is_told_in_the_words_of_its_version(tmp_path: Path) -> None:
    settings = {**building.DEFAULTS, **SETTINGS, "optimization_level": 4, "tf32": False}
    words = {v[0]: building.trtexec_arguments(settings, v, tmp_path) for v in ((8, 6, 2), (10, 3, 0), (11, 0, 0))}
    for found in words.values():
        assert {"--maxShapes=images:4x3x8x8", "--noTF32", "--builderOptimizationLevel=4", "--skipInference"} <= set(
            found
        )
    assert {"--int8", "--fp16"} <= set(words[8])
    assert "--stronglyTyped" in words[10]
    assert not {"--int8", "--fp16", "--stronglyTyped"} & set(words[11])
    assert "--buildOnly" in building.trtexec_arguments(settings, (8, 5, 2), tmp_path)


def test_a_graph_of_fixed_shapes_is_built_without_a_profile(board: Any, tmp_path: Path) -> None:
    """`trtexec` refuses shapes for it: "Static model does not take explicit shapes"."""
    path = _bundle(tmp_path / "b")
    plain = json.loads((path / "deploy.json").read_text())
    plain["input"]["shape"] = [1, 3, 8, 8]
    (path / "deploy.json").write_text(json.dumps(plain))
    write_manifest(path)
    with Bundle(path) as bundle:
        entry = next(one for one in bundle.deploy.engines if one.name == "graph")
        device = Device("Orin", "8.7", "10.3.0", "linux", "aarch64")
        job = building.job_of(bundle, entry, entry, device, {})
        assert job.settings["inputs"] == []
        words = building.trtexec_arguments(job.settings, (10, 3, 0), tmp_path)
        assert [word for word in words if "Shapes" in word] == []
        assert json.loads(building.build(job, bundle, tmp_path / "cache").engine)["profile"] is None


def test_an_int8_graph_with_float16_scales_is_for_10_and_newer(board: Any, tmp_path: Path) -> None:
    board("8.6.1")
    path = _bundle(tmp_path / "b")
    plain = json.loads((path / "deploy.json").read_text())
    for one in plain["engines"]:
        one["scheme"] = INT8_FP16
    (path / "deploy.json").write_text(json.dumps(plain))
    write_manifest(path)
    assert module.FLOAT16_AROUND_INT8 == INT8_FP16
    with pytest.raises(EngineError, match=r"scales in float16, which TensorRT reads from 10 on; here is 8.6.1"):
        _strict(path, tmp_path / "cache", rebuild=True)
    assert not (tmp_path / "cache").exists()


def test_without_a_gpu_the_reason_is_said(board: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_NAMES", ("libnowhere.so",))
    with pytest.raises(EngineError, match="there is no CUDA device: the CUDA runtime library"):
        _strict(_bundle(tmp_path / "b"), tmp_path / "cache")


def test_errors_of_cuda_are_told_by_name(board: Any) -> None:
    device = cuda.Cuda()
    with pytest.raises(OSError, match=r"cudaMalloc failed: out of memory \(CUDA error 2\)"):
        device.allocate(1 << 50)
    assert device.device() == ("Orin", "8.7", 16)
    device.close()
    device.close()


def test_without_tensorrt_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match=r"tensorrt is not installed.*JetPack"):
        _strict(_bundle(tmp_path / "b"), tmp_path / "cache")
    assert module.FORMATS == ("tensorrt", "onnx")
