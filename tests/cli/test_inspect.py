"""`edgekd inspect`: what it prints, what it mends, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgekd.cli.app import exit_code_of
from tests.lint.graphs import Builder, float_conv
from tests.lint.test_grids import integer_bias


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    onnx.save(integer_bias(), tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_errors_are_printed_with_reason_and_fix_and_end_with_1(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(["inspect", "model.onnx", "--target", "jetson"]) == 1
    shown = capsys.readouterr().out
    assert "jetson-orin-nano (tensorrt): cnn, opset 17" in shown
    assert "error integer-bias (tensorrt)\n  DequantizeLinear bias: int32 bias of conv\n  why: TensorRT" in shown
    assert "(--fix does it)" in shown
    assert "1 error, " in shown


def test_fix_writes_a_graph_that_is_clean(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(["inspect", "model.onnx", "--target", "jetson", "--fix", "-o", "fixed.onnx"]) == 0
    shown = capsys.readouterr().out
    assert "1 change:\n  bias: the int32 bias became float, the same numbers.\nProven with ONNX Runtime" in shown
    assert exit_code_of(["inspect", "fixed.onnx", "--target", "jetson"]) == 0


def test_json_holds_the_report_the_repair_and_what_is_left(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--target", "jetson", "--fix", "-o", "fixed.onnx", "--format", "json"]
    assert exit_code_of(["inspect", "model.onnx", *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["report"]["schema_version"] == 1
    assert [f["rule"] for f in found["report"]["findings"] if f["severity"] == "error"] == ["integer-bias"]
    assert found["repair"]["changes"]
    assert not [f for f in found["after"]["findings"] if f["severity"] == "error"]


def test_many_findings_of_a_rule_are_cut_unless_all_are_asked_for(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    b, value = Builder(), "images"
    for place in range(5):
        value = b.conv(b.qdq(value, f"in{place}", dtype=np.uint8, point=3), f"conv{place}")
    onnx.save(b.model(value), here / "many.onnx")
    assert exit_code_of(["inspect", "many.onnx", "--target", "jetson"]) == 1
    assert "... and 2 more (--all names them)" in capsys.readouterr().out
    exit_code_of(["inspect", "many.onnx", "--target", "jetson", "--all"])
    assert "in4.q: uint8 with zero point 3" in capsys.readouterr().out


def test_ranges_are_looked_at_on_data(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    b = Builder()
    large = b.node("Mul", [b.conv("images", "conv", quantized=False, into=3), b.constant("much", 1e6)], "large")
    flat = b.node("Flatten", [b.node("GlobalAveragePool", [large], "pool")], "flat")
    onnx.save(b.model(flat, inputs={"images": ["N", 3, 6, 6]}), here / "wide.onnx")
    images = np.random.default_rng(0).integers(0, 255, (12, 6, 6, 3)).astype(np.uint8)
    np.savez(here / "data.npz", images=images, labels=np.arange(12) % 2)
    assert exit_code_of(["inspect", "wide.onnx", "--target", "jetson", "--data", "data.npz"]) == 0
    shown = capsys.readouterr().out
    assert "warning float16-range" in shown
    assert "Mul large: 'large' reaches" in shown
    assert "The file carries no preprocessing" in shown


def test_a_graph_of_a_fixed_batch_is_looked_at_on_whole_batches(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = np.random.default_rng(0).integers(0, 255, (12, 6, 6, 3)).astype(np.uint8)
    np.savez(here / "data.npz", images=images, labels=np.arange(12) % 2)
    for batch, code in ((1, 0), (3, 0), (64, 2)):
        b = Builder()
        flat = b.node("Flatten", [b.conv("images", "conv", quantized=False, into=3)], "flat")
        onnx.save(b.model(flat, inputs={"images": [batch, 3, 6, 6]}), here / "fixed.onnx")
        assert exit_code_of(["inspect", "fixed.onnx", "--target", "jetson", "--data", "data.npz"]) == code
    assert "The graph takes 64 images at once, and there are 8 to look" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["model.onnx", "--fix"], "--fix needs -o FILE."),
        (["model.onnx", "-o", "x.onnx"], "-o needs --fix."),
        (["model.onnx", "--fix", "-o", "model.onnx"], "is the graph that is inspected"),
        (["model.onnx", "--target", "jetson", "--runtime", "openvino"], "jetson-orin-nano does not run openvino."),
        (["nothing.onnx"], "No such file or folder: nothing.onnx."),
        (["."], "is not a package"),
    ],
)
def test_wrong_flags_are_refused(here: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str) -> None:
    assert exit_code_of(["inspect", *flags]) == 2
    assert said in capsys.readouterr().err
    assert not (here / "x.onnx").exists()


def test_a_clean_graph_ends_with_0(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(float_conv(), here / "clean.onnx")
    assert exit_code_of(["inspect", "clean.onnx", "--runtime", "onnxruntime"]) == 0
    assert "nothing found" in capsys.readouterr().out
