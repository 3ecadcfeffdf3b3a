"""`edgekd benchmark` as a user calls it: one real run in one runtime, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgekd.cli.app import exit_code_of
from edgekd.cli.benchmark import _print
from edgekd.core.benchmark import BenchmarkReport, BenchmarkRow
from edgekd.core.preprocess import Preprocessing
from edgekd.runtimes.onnx_file import write_graph
from edgekd.testing.toy_data import toy_dataset
from edgekd.testing.toy_graphs import toy_graph

SHORT = ["--precision", "fp32,int8", "--images", "8", "--calib-samples", "8", "--calib-method", "minmax",
         "--warmup", "0", "--duration", "0.05", "--interval", "9"]  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_graph(toy_graph(), tmp_path / "model.onnx", made_by="the test")
    return tmp_path / "model.onnx"


@pytest.fixture
def command(model: Path) -> list[str]:
    folder = model.parent
    data, as_is = toy_dataset(n=80), Preprocessing(size=(8, 8))
    parts = [data.train, data.select, data.test]
    pixels = [part.images(np.arange(len(part)), as_is) for part in parts]
    np.savez(
        folder / "data.npz", images=pixels[0], labels=parts[0].labels, val_images=np.concatenate(pixels[1:]),
        val_labels=np.concatenate([part.labels for part in parts[1:]]),
    )  # fmt: skip
    places = ["-o", str(folder / "out"), "--store", str(folder / "store"), "--runtimes", "onnxruntime,tensorrt"]
    return ["benchmark", str(model), "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5",
            "--data", str(folder / "data.npz"), *SHORT, *places]  # fmt: skip


def test_a_run_without_data_compares_on_noise_and_leaves_the_json_and_the_page(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = model.parent / "out"
    quick = ["--precision", "fp32", "--images", "2", "--warmup", "0", "--duration", "0.02", "--interval", "9"]
    places = ["-o", str(out), "--store", str(model.parent / "store"), "--runtimes", "onnxruntime"]
    assert exit_code_of(["benchmark", str(model), *quick, *places]) in (0, 5)
    told = capsys.readouterr().out
    assert "compared on noise" in told
    assert "chosen   fp32 in onnxruntime" in told
    found = BenchmarkReport.parse(json.loads((out / "benchmark.json").read_text()), "the file")
    assert [(row.engine, row.status, row.fastest) for row in found.rows] == [("fp32", "chosen", True)]
    assert "Where the time goes" in (out / "report.html").read_text()


@pytest.mark.slow
def test_one_run_gives_the_table_the_json_and_the_page_and_a_second_one_reuses_its_engines(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(command[command.index("-o") + 1])
    assert exit_code_of([*command, "--format", "json"]) in (0, 5)
    found = BenchmarkReport.parse(json.loads(capsys.readouterr().out), "stdout")
    assert found == BenchmarkReport.parse(json.loads((out / "benchmark.json").read_text()), "the file")
    rows = {(row.engine, row.runtime): row for row in found.rows}
    assert set(rows) == {("fp32", "onnxruntime"), ("int8-ort", "onnxruntime"), ("", "tensorrt")}
    assert rows["", "tensorrt"].status in ("not installed", "not supported")
    for engine in ("fp32", "int8-ort"):
        row = rows[engine, "onnxruntime"]
        assert row.p50_ms is not None
        assert row.memory_peak_mib is not None
        assert (row.metric, row.images) == ("top1", 8)
    assert rows["int8-ort", "onnxruntime"].sqnr_db is not None
    assert "Every engine in every runtime" in (out / "report.html").read_text()
    assert exit_code_of(["benchmark", *command[1:], "--dry-run"]) == 0
    plan = capsys.readouterr().out
    assert plan.count("reused: nothing changed") == 5
    assert "not cacheable (a measurement)" in plan


def test_a_folder_with_another_report_is_left_alone(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    out = Path(command[command.index("-o") + 1])
    out.mkdir()
    (out / "report.html").write_text("somebody's")
    assert exit_code_of(command) == 2
    assert "was not written by a benchmark; it is left as it is" in capsys.readouterr().err
    assert (out / "report.html").read_text() == "somebody's"


def test_a_device_that_is_elsewhere_cannot_be_benchmarked(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(["benchmark", str(model), "--target", "jetson-orin-nano", "-o", str(model.parent / "o"),
                         "--store", str(model.parent / "s")]) == 3  # fmt: skip
    said = capsys.readouterr().err
    assert "A benchmark measures, and this machine is not jetson-orin-nano" in said
    assert "--device ssh://" in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--precision", "fp8"], "--precision: unknown name 'fp8'"),
        (["--runtimes", "openvin"], "Did you mean 'openvino'"),
        (["--threads", "0"], "--threads '0': expected whole numbers from 1"),
        (["--data", "synthetic"], "BatchNorm statistics of a PyTorch model, and this is a graph"),
    ],
)
def test_flags_that_cannot_be_followed_are_named(
    model: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["-o", str(model.parent / "o"), "--store", str(model.parent / "s")]
    assert exit_code_of(["benchmark", str(model), *places, *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_graph_that_is_no_model_of_images_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = toy_graph()
    graph.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 7
    onnx.save(graph, tmp_path / "seven.onnx")
    places = ["-o", str(tmp_path / "o"), "--store", str(tmp_path / "s")]
    assert exit_code_of(["benchmark", str(tmp_path / "seven.onnx"), *places]) == 2
    assert "expected images of 1 or 3 channels" in capsys.readouterr().err


def test_one_thread_count_is_in_the_title_and_several_are_a_column(capsys: pytest.CaptureFixture[str]) -> None:
    row = BenchmarkRow(engine="fp32", runtime="openvino", threads=1, p50_ms=1.0, status="failed", reason="it broke")
    given = {"model": "m", "target": "t", "device": "a desk", "data": "noise", "max_drop": 0.01, "seed": 0}
    one = BenchmarkReport.model_validate({**given, "threads": (1,), "rows": (row,)})
    _print(one, Path("b.json"), Path("r.html"))
    said = capsys.readouterr().out
    assert "a desk; 1 thread" in said
    assert "threads" not in said
    two = one.model_copy(update={"threads": (1, 2)})
    _print(two, Path("b.json"), Path("r.html"))
    said = capsys.readouterr().out
    assert "threads" in said
    assert "fp32@openvino, 1 thread: failed: it broke" in said
