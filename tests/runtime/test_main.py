"""The command line prints what the engine says, and fails with edgekd's exit codes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from edgekd_runtime import Engine
from edgekd_runtime.__main__ import main, timed
from PIL import Image

from tests.runtime.bundles import LABELS, entry, write_bundle


@pytest.fixture
def image(tmp_path: Path) -> str:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.jpg")
    return str(tmp_path / "image.jpg")


def test_classes_of_an_image(tmp_path: Path, image: str, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_bundle(tmp_path / "b")
    assert main([str(bundle), image, "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    labels, scores = Engine.load(bundle)(image, top=2)
    assert lines == [f"{score:.4f}\t{label}" for label, score in zip(labels, scores, strict=True)]


def test_several_images_are_told_apart(tmp_path: Path, image: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(write_bundle(tmp_path / "b")), image, image, "--top", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"{image}\t") and line.split("\t")[2] in LABELS for line in lines)


def test_flags_may_stand_before_the_images(tmp_path: Path, image: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(write_bundle(tmp_path / "b")), "--engine", "fp32", image, "--top", "1", image]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_the_list_shows_engines_and_loads_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engines = [entry("int8", precision="int8"), entry("odd", format="odd", chosen=False, latency=None, accuracy=None)]
    assert main([str(write_bundle(tmp_path / "b", engines)), "--list"]) == 0
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == "classification, input images Nx3x8x8 float32"
    assert second == "* int8: onnx, int8, 0.5 ms (measured), accuracy 0.9000, for onnxruntime, openvino"
    assert third == "  odd: odd, fp32, latency unknown, for onnxruntime, openvino"


def test_without_images_it_says_what_would_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(write_bundle(tmp_path / "b"))]) == 0
    assert json.loads(capsys.readouterr().out)["engine"] == "fp32"


def test_the_benchmark_is_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(write_bundle(tmp_path / "b")), "--benchmark", "--runtime", "onnxruntime"]) == 0
    timing = json.loads(capsys.readouterr().out)["timing"]
    assert 0 < timing["min_ms"] <= timing["median_ms"] <= timing["p99_ms"]


def test_times_are_those_of_the_clock(tmp_path: Path) -> None:
    ticks = iter(range(0, 10_000_000_000, 1_000_000))  # each look at the clock is a millisecond later
    found = timed(Engine.load(write_bundle(tmp_path / "b")), calls=5, warm_calls=0, clock_ns=lambda: next(ticks))
    assert found == {"median_ms": 1.0, "p99_ms": 1.0, "min_ms": 1.0, "calls": 5}


def test_errors_go_to_stderr_with_the_right_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_bundle(tmp_path / "b")
    assert main([str(tmp_path / "nothing")]) == 2
    assert "no such file" in capsys.readouterr().err
    assert main([str(bundle), "/nowhere.jpg"]) == 2
    assert "/nowhere.jpg: there is no such file" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main([str(bundle), "--strict"]) == 3
    assert "pip install 'edgekd-runtime[onnxruntime]'" in capsys.readouterr().err


def test_a_fallback_is_one_line_on_stderr(
    tmp_path: Path, image: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main([str(write_bundle(tmp_path / "b")), image]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("warning: ")
    assert "using fp32 in openvino" in lines[0]
