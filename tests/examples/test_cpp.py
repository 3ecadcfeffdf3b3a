"""The C++ loops are compiled and run: OpenVINO for real, TensorRT against stand-ins; both preprocess as in training."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
from edgekd_runtime import Engine, Preprocessing

from tests.examples.stubs import CUDA_H, TENSORRT_H
from tests.runtime.bundles import LABELS, PREPROCESSING, entry, graph_bytes, write_bundle

EXAMPLES = Path(__file__).parents[2] / "examples"
FLAGS = ("-std=c++17", "-Wall", "-ffp-contract=off", f"-I{EXAMPLES / 'cpp'}")
DUMP = r"""
#include <iostream>
#include "bundle.hpp"
int main(int, char** arguments) try {
    const std::string text = arguments[1];
    if (text == "sha") {
        std::cout << edgekd::sha256(arguments[2]) << "\n";
        return 0;
    }
    if (text == "json") {
        std::cout << edgekd::Json::parse(arguments[2])["a"].list().at(1)["b"].text() << "\n";
        return 0;
    }
    const edgekd::Preprocessing p = edgekd::Preprocessing::from(edgekd::Json::parse(text));
    const std::vector<float> found = edgekd::preprocess(edgekd::read_ppm(arguments[2]), p);
    std::cout.write(reinterpret_cast<const char*>(found.data()), found.size() * sizeof(float));
    return 0;
} catch (const std::exception& err) {
    std::cerr << err.what() << "\n";
    return 2;
}
"""


def _compile(source: Path, program: Path, *more: str) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    done = subprocess.run([compiler, *FLAGS, str(source), *more, "-o", str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return program


def _ppm(path: Path, pixels: np.ndarray) -> Path:
    path.write_bytes(f"P6\n{pixels.shape[1]} {pixels.shape[0]}\n255\n".encode() + pixels.tobytes())
    return path


def _pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that prints what the headers compute."""
    folder = tmp_path_factory.mktemp("dump")
    (folder / "dump.cpp").write_text(DUMP)
    return _compile(folder / "dump.cpp", folder / "dump", "-O0", "-Wextra", "-Werror")


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_tensors_are_those_of_the_runtime_bit_by_bit(dump: Path, tmp_path: Path, interpolation: str) -> None:
    grey = {"mean": [0.5], "std": [0.25]}
    cases: list[dict[str, Any]] = [{}, {"channel_order": "BGR"}, grey, {"size": [20, 33], "crop_fraction": 0.9}]
    for change in cases:
        data = {**PREPROCESSING, "size": [24, 24], "interpolation": interpolation, **change}
        for number, (height, width) in enumerate([(31, 47), (150, 40), (24, 24), (13, 11), (257, 256)]):
            pixels = _pixels(height, width, number)
            arguments = [dump, json.dumps(data), _ppm(tmp_path / "image.ppm", pixels)]
            done = subprocess.run(arguments, capture_output=True, check=True)
            wanted = Preprocessing.parse(data)(pixels)
            assert np.array_equal(np.frombuffer(done.stdout, np.float32), wanted.ravel()), (change, height, width)


@pytest.mark.parametrize("length", [0, 1, 3, 55, 56, 63, 64, 65, 119, 120, 200])
def test_digests_are_sha_256(dump: Path, length: int) -> None:
    text = "ä" * (length // 2) + "x" * (length % 2)
    done = subprocess.run([dump, "sha", text], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == hashlib.sha256(text.encode()).hexdigest()


def test_json_is_read_as_python_writes_it(dump: Path) -> None:
    for text in ("plain", 'quotes " and \\ and / and\ttabs\n', "Gänsegeier", "鶏"):
        for ascii_only in (True, False):
            data = json.dumps({"x": None, "a": [-1.5e3, {"b": text}], "y": True}, ensure_ascii=ascii_only, indent=1)
            done = subprocess.run([dump, "json", data], capture_output=True, text=True, check=True)
            assert done.stdout == f"{text}\n"


@pytest.mark.parametrize("text", ["{", '{"a": [1 2]}', "[" * 1000, '{"a": 1} x', '{"a" 1}', "nope", '"'])
def test_json_that_is_none_is_refused(dump: Path, text: str) -> None:
    done = subprocess.run([dump, "json", text], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("JSON: ")


@pytest.mark.slow
def test_the_openvino_loop_gives_the_runtimes_scores(tmp_path: Path) -> None:
    root = Path(openvino.__file__).parent
    (library,) = (path for path in (root / "libs").glob("libopenvino.so.*") if path.is_file())
    program = _compile(
        EXAMPLES / "cpp-openvino" / "loop.cpp",
        tmp_path / "loop",
        *(f"-I{root / 'include'}", f"-L{root / 'libs'}", f"-l:{library.name}"),
        *(f"-Wl,-rpath,{root / 'libs'}", f"-Wl,-rpath-link,{root / 'libs'}"),
    )
    # The first one is meant for ONNX Runtime alone: neither takes it for OpenVINO.
    other = entry("int8", files={"model.onnx": "int8.onnx"}, runtimes=["onnxruntime"])
    engines = [other, entry("fp32", chosen=False)]
    bundle, pixels = write_bundle(tmp_path / "b", engines, {"int8.onnx": graph_bytes(seed=1)}), _pixels(40, 23)
    image = _ppm(tmp_path / "image.ppm", pixels)
    done = subprocess.run([program, bundle, image, "10"], capture_output=True, text=True, check=True)
    *lines, timing = done.stdout.splitlines()
    labels, scores = Engine.load(bundle, runtime="openvino")(pixels)
    assert [line.split("\t")[1] for line in lines] == list(labels)
    assert np.allclose([float(line.split("\t")[0]) for line in lines], scores, atol=1e-4)
    assert timing.startswith("median ")
    (bundle / "model.onnx").write_bytes(b"other")
    done = subprocess.run([program, bundle, image], capture_output=True, text=True)
    assert (done.returncode, "model.onnx was altered" in done.stderr) == (2, True)


@pytest.fixture(scope="module")
def jetson(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jetson")
    (folder / "cuda_runtime_api.h").write_text(CUDA_H)
    (folder / "NvInfer.h").write_text(TENSORRT_H)
    return _compile(EXAMPLES / "jetson" / "loop.cpp", folder / "loop", f"-I{folder}")


def _engine_bundle(folder: Path, **changes: Any) -> Path:
    fingerprint = {
        "schema_version": 1,
        "gpu": "Orin",
        "compute_capability": "8.7",
        "tensorrt": "10.3.0.26",
        "multiprocessors": 16,
        "engine_sha256": hashlib.sha256(b"plan").hexdigest(),
        **changes,
    }
    files = {"model.engine": b"plan", "model.engine.json": json.dumps(fingerprint).encode()}
    names = {"model.engine": "model.engine"}
    one = entry("trt", format="tensorrt", files=names, runtimes=["tensorrt"], fingerprint="model.engine.json")
    return write_bundle(folder, [one], files)


@pytest.mark.slow
def test_the_tensorrt_loop_runs_an_engine_that_fits(jetson: Path, tmp_path: Path) -> None:
    bundle, pixels = _engine_bundle(tmp_path / "b"), _pixels(40, 23)
    image = _ppm(tmp_path / "image.ppm", pixels)
    done = subprocess.run([jetson, bundle, image, "10"], capture_output=True, text=True, check=True)
    *lines, timing = done.stdout.splitlines()
    mean = Preprocessing.parse(PREPROCESSING)(pixels).mean()
    chances = np.exp(mean * np.arange(1, 5)) / np.exp(mean * np.arange(1, 5)).sum()
    order = np.argsort(-chances)
    assert lines == [f"{chances[k]:.4f}\t{LABELS[k]}" for k in order]
    assert timing.endswith("ms of 10 calls")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"gpu": "Xavier"}, 3, "the engine was built for gpu Xavier, here is Orin"),
        ({"tensorrt": "10.30.0"}, 3, "built for tensorrt 10.30.0, here is 10.3.0"),
        ({"compute_capability": "7.2"}, 3, "built for compute_capability 7.2"),
        ({"multiprocessors": 8}, 3, "of another size"),
        ({"engine_sha256": "0" * 64}, 3, "the fingerprint is another engine's"),
    ],
)
def test_the_tensorrt_loop_refuses_others(
    jetson: Path, tmp_path: Path, changes: dict[str, Any], code: int, message: str
) -> None:
    image = _ppm(tmp_path / "image.ppm", _pixels(9, 9))
    done = subprocess.run([jetson, _engine_bundle(tmp_path / "b", **changes), image], capture_output=True, text=True)
    assert (done.returncode, message in done.stderr) == (code, True), done.stderr


@pytest.mark.skipif("EDGEKD_TENSORRT_INCLUDE" not in os.environ, reason="EDGEKD_TENSORRT_INCLUDE names no headers")
def test_the_tensorrt_loop_compiles_with_the_real_headers() -> None:
    folders = [f"-I{folder}" for folder in os.environ["EDGEKD_TENSORRT_INCLUDE"].split(os.pathsep)]
    source = EXAMPLES / "jetson" / "loop.cpp"
    done = subprocess.run(["g++", *FLAGS, "-fsyntax-only", *folders, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
