"""`edgekd build`: plans, engines in the package, what is left when it fails; TensorRT is made from recorded names."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgekd.cli.app import exit_code_of
from edgekd.core.blobs import FolderBlobs
from edgekd.core.digest import file_digest
from edgekd.export.deployment import Shipped, note_from_bundle
from edgekd.export.package import verified_package, write_package
from edgekd.runtimes.engines.settings import INT8_FP16
from edgekd.targets.load import load_target
from edgekd.testing.toy_graphs import toy_onnx_bundle
from tests.runtimes.engines.boards import FakeBoard

QUICK = ["--probes", "1", "--duration", "0"]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package of a toy graph for a Jetson, in the folder of a run; the working directory is above it."""
    blobs = FolderBlobs(tmp_path / "blobs")
    (tmp_path / "scratch").mkdir()
    bundle = toy_onnx_bundle(blobs, tmp_path / "scratch")
    place = tmp_path / "out" / "bundle"
    target = load_target("jetson")
    chosen = Shipped(bundle=bundle, note=replace(note_from_bundle(bundle, target), accuracy=0.9))
    write_package(bundle, blobs, place, target=target, versions={"edgekd": "0"}, extra={}, chosen=chosen)
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "photos.npz", images=images, labels=np.arange(40) % 4)
    monkeypatch.chdir(tmp_path)
    return place


def bytes_of(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): file_digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def said(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> str:
    assert exit_code_of(arguments) == code
    captured = capsys.readouterr()
    return captured.out if code == 0 else captured.err


def test_a_dry_run_prints_the_command_of_each_release_and_changes_nothing(
    package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = bytes_of(package)
    text = said(["build", "out", "--dry-run", "--max-shapes", "images:4x3x8x8"], capsys)
    assert "model-trt, from model (fp32):" in text
    assert "TensorRT 8.5: trtexec --onnx=model.onnx" in text
    assert "--maxShapes=images:4x3x8x8 --stronglyTyped" in text
    found = json.loads(said(["build", "out", "--dry-run", "--format", "json"], capsys))
    assert list(found["builds"][0]["commands"]) == ["8.5", "8.6", "10"]
    assert bytes_of(package) == before


def test_without_a_gpu_the_exit_code_is_3_and_the_command_is_told(
    package: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    before = bytes_of(package)
    text = said(["build", "out", *QUICK], capsys, code=3)
    assert "An engine can only be built on the device it is for: " in text
    assert "by hand, on the device, in the folder of model.onnx: trtexec --onnx=model.onnx" in text
    assert "--stronglyTyped" in text
    assert bytes_of(package) == before


def test_engines_go_into_the_package_with_fingerprint_timings_and_layers(
    fake_board: FakeBoard, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "timings"
    text = said(["build", "out", *QUICK, "--timing-cache", str(cache)], capsys)
    assert "model-trt" in text
    assert "tensorrt-10.3.0/sm_87/Orin" in text
    found = verified_package(package)
    assert found.deployment is not None
    entry, source = found.deployment.engines
    assert (entry.name, entry.format, entry.source, entry.chosen) == ("model-trt", "tensorrt", "model", False)
    assert (source.name, source.chosen) == ("model", True)
    assert entry.fingerprint == "engines/model-trt/model.engine.json"
    assert entry.timing_cache == "engines/model-trt/timing.cache"
    assert entry.latency is None  # the time of the kernels alone is no latency
    assert (source.accuracy, entry.accuracy) == (0.9, None)  # only its answers to a few images were compared
    assert "built from model by TensorRT 10.3.0 on Orin, GPU compute time" in entry.reason
    sidecar = json.loads((package / "engines/model-trt/model.engine.json").read_text())
    assert sidecar["engine_sha256"] == file_digest(package / "engines/model-trt/model.engine")
    assert (package / "engines/model-trt/layers.json").is_file()
    assert json.loads((tmp_path / "timings.json").read_text())["gpu"] == "Orin"
    assert [path.name for path in tmp_path.glob(".*")] == []
    # Built again, it takes the timings that lie in the package; parity may be judged on photos.
    said(["build", "out", *QUICK, "--data", "photos.npz", "--format", "json"], capsys)
    assert [call["cache"] for call in fake_board.calls] == ["", "FAKE-CACHE Orin"]


@pytest.mark.slow
def test_a_package_in_one_file_stays_one_file(
    fake_board: FakeBoard, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(["package", "out", "-o", "model.edgekd"], capsys)
    found = json.loads(said(["build", "model.edgekd", *QUICK, "-o", "built.edgekd", "--format", "json"], capsys))
    assert found["engines"]["model-trt"]["fingerprint"]["gpu"] == "Orin"
    verified = said(["package", "built.edgekd", "--verify", "--expect-digest", found["digest"]], capsys)
    assert "model-trt" in verified
    assert sorted(path.name for path in tmp_path.glob("*.edgekd")) == ["built.edgekd", "model.edgekd"]


def test_a_build_that_fails_ends_with_4_and_leaves_the_package_as_it_was(
    fake_board: FakeBoard, package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = bytes_of(package)
    fake_board.set(version="10.3.0", builds=[{"fail": "crash"}])
    assert "the builder crashed with SIGSEGV" in said(["build", "out", *QUICK], capsys, code=4)
    assert bytes_of(package) == before
    assert sorted(path.name for path in package.parent.iterdir()) == ["bundle"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "other"], "has no graph 'other'"),
        (["--max-batch", "4", "--max-shapes", "4x3x8x8"], "--max-batch and --max-shapes say the same"),
        (["--max-shapes", "4x3x9x9"], "the graph's input is images:Nx3x8x8"),
        (["--opt-shapes", "8x3x8x8"], "batches must rise"),
    ],
)
def test_flags_that_cannot_be_meant_are_refused(
    package: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in said(["build", "out", *arguments], capsys, code=2)


def test_a_package_for_another_runtime_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blobs = FolderBlobs(tmp_path / "blobs")
    bundle = toy_onnx_bundle(blobs, tmp_path)
    write_package(bundle, blobs, tmp_path / "pi", target=load_target("raspberry-pi-5"), versions={}, extra={})
    text = said(["build", str(tmp_path / "pi")], capsys, code=2)
    assert "is for raspberry-pi-5, which does not run TensorRT" in text


def test_what_the_release_at_hand_does_not_read_is_left_out_unless_it_was_named(
    fake_board: FakeBoard, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blobs = FolderBlobs(tmp_path / "blobs")
    full, other = toy_onnx_bundle(blobs, tmp_path / "scratch"), toy_onnx_bundle(blobs, tmp_path / "scratch", seed=1)
    half = other.model_copy(update={"tags": {"precision": "int8", "scheme": INT8_FP16}})
    shipped = [
        Shipped(bundle=bundle, note=replace(note_from_bundle(bundle, load_target("jetson")), name=name))
        for name, bundle in (("full", full), ("half", half))
    ]
    place = tmp_path / "two"
    card = load_target("jetson")
    write_package(full, blobs, place, target=card, versions={}, extra={}, chosen=shipped[0], twins=shipped[1:])
    fake_board.set(version="8.6.1")
    shown = said(["build", str(place), "--dry-run"], capsys)
    assert "TensorRT 8.6: not possible: TensorRT 8.6.0 does not read scales in float16" in shown
    why = "TensorRT 8.6.1 does not read scales in float16, which came with 10: build the plain INT8 graph"
    assert why in said(["build", str(place), *QUICK, "--engine", "half"], capsys, code=4)
    assert exit_code_of(["build", str(place), *QUICK]) == 0
    assert why in capsys.readouterr().err
    found = verified_package(place).deployment
    assert found is not None
    assert [engine.name for engine in found.engines] == ["full-trt", "full", "half"]


def test_a_place_that_is_not_free_is_refused_before_anything_is_built(
    fake_board: FakeBoard, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("two years")
    assert "taken is not empty and not a package" in said(["build", "out", *QUICK, "-o", "taken"], capsys, code=2)
    (tmp_path / "file").write_text("in the way")
    for flag, place in (("-o", "file/built.edgekd"), ("--timing-cache", "file/timings")):
        assert "file" in said(["build", "out", *QUICK, flag, place], capsys, code=2)
    assert fake_board.calls == []


def test_folders_on_the_way_to_the_result_are_made(
    fake_board: FakeBoard, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(["build", "out", *QUICK, "-o", "deep/er/built.edgekd", "--timing-cache", "new/timings"], capsys)
    assert sorted(path.name for path in (tmp_path / "deep" / "er").iterdir()) == ["built.edgekd"]
    assert (tmp_path / "new" / "timings.json").is_file()
