"""`edgekd profile` and `edgekd compare` on toy graphs; how long these take on the day is never asserted."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest

from edgekd.cli.app import exit_code_of
from edgekd.cli.compare import _runtimes_by_bundle
from edgekd.cli.profile import exit_code_for
from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.rounds import Interval
from edgekd.errors import UserError
from edgekd.profiling.measure import why_inconclusive
from edgekd.testing.toy_graphs import toy_graph

QUICK = ["--warmup", "0", "--duration", "0.05"]
ORT = ["--runtime", "onnxruntime"]


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    """A small network, and one that computes sixteen times as much."""
    for name, size in (("small", 16), ("large", 64)):
        onnx.save(toy_graph(size=size), tmp_path / f"{name}.onnx")
    return [str(tmp_path / "small.onnx"), str(tmp_path / "large.onnx")]


def test_a_precision_that_cannot_be_reached_is_inconclusive_with_the_width_reached(
    models: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code_of(["profile", models[0], *ORT, *QUICK, "--precision", "1e-9"]) == 5
    said = capsys.readouterr().out
    assert "inconclusive. The 95 % interval of the median is" in said
    assert "wide after" in said


@pytest.mark.parametrize(("width", "text"), [(0.0102, "1.02% wide"), (0.031, "3.1% wide"), (0.01001, "1.001% wide")])
def test_a_width_just_over_what_was_asked_does_not_read_as_equal(width: float, text: str) -> None:
    found = Interval(low=1.0 - width / 2, middle=1.0, high=1.0 + width / 2, effective_n=100.0)
    assert text in (why_inconclusive(found, 0.01, 100) or "")


def test_profile_shows_load_time_memory_layers_and_the_scenarios_of_mlperf(
    models: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code_of(["profile", models[0], *ORT, *QUICK, "--layers", "--offline", "8", "--format", "table"]) in (
        0,
        5,
    )
    said = capsys.readouterr().out
    for column in ("load ms", "peak MiB", "offline per s", "computes in"):
        assert column in said
    assert "on CPUExecutionProvider" in said
    assert exit_code_of(["profile", models[0], *ORT, *QUICK, "--offline", "8", "--format", "json"]) in (0, 5)
    latency = json.loads(capsys.readouterr().out)["entries"][0]["latency"]
    assert latency["mlperf"]["single_stream_p90_ms"] == latency["p90_ms"]
    assert latency["mlperf"]["offline_per_s"] > 0


def test_a_model_that_does_not_load_leaves_nothing_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = toy_graph()
    graph.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(graph, tmp_path / "x.onnx")
    assert exit_code_of(["profile", str(tmp_path / "x.onnx"), *ORT, *QUICK]) == 4
    assert "NoSuchOperator" in capsys.readouterr().out


def test_compare_answers_with_a_ratio_an_interval_and_a_sentence(
    models: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code_of(["compare", *models, *ORT, *QUICK, "--format", "json"]) == 0
    report = json.loads(capsys.readouterr().out)
    (ratio,) = report["ratios"]
    assert report["reference"] == "small-onnx@onnxruntime"
    assert ratio["low"] <= ratio["ratio"] <= ratio["high"]
    assert ratio["rounds"] >= 6
    assert "large-onnx@onnxruntime" in ratio["sentence"]
    assert exit_code_of(["compare", *models, *ORT, *QUICK]) == 0
    said = capsys.readouterr().out
    assert "reference" in said
    assert "95 % interval" in said


def test_compare_takes_two_runtimes_of_one_model(models: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compare", models[0], *ORT, "--runtime", "openvino", *QUICK, "--format", "json"]
    assert exit_code_of(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert [ratio["runtime"] for ratio in report["ratios"]] == ["openvino"]


def test_one_engine_is_not_compared_with_itself(models: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(["compare", models[0], *QUICK]) == 2
    said = capsys.readouterr().err
    assert "There must be two different engines to compare, got small-onnx@onnxruntime" in said
    assert "--runtime" in said


@pytest.mark.parametrize(
    ("latencies", "failures", "code"),
    [
        ([None], [], 0),
        ([None], [3], 0),
        ([None, "too wide"], [], 5),
        ([], [3, 2], 3),
        ([], [5], 5),
        ([None], [5], 5),
    ],
)
def test_the_exit_code_says_whether_the_numbers_answer_the_question(
    latencies: list[str | None], failures: list[int], code: int
) -> None:
    entries = [SimpleNamespace(latency=SimpleNamespace(inconclusive=text), failure_code=None) for text in latencies]
    entries += [SimpleNamespace(latency=None, failure_code=failed) for failed in failures]
    assert exit_code_for(entries) == code


def test_an_engine_is_compared_in_its_own_runtime_and_graphs_in_a_common_one() -> None:
    engine = ModelBundle(kind=BundleKind.ENGINE, tags={"format": "ncnn"})
    graph = ModelBundle(kind=BundleKind.ONNX)
    assert _runtimes_by_bundle({"a": engine, "b": graph}, ()) == {"a": ("ncnn",), "b": ("onnxruntime",)}
    assert _runtimes_by_bundle({"a": engine, "b": graph}, ("openvino",)) == {"a": ("ncnn",), "b": ("openvino",)}
    with pytest.raises(UserError, match="they are a torch bundle and an onnx bundle"):
        _runtimes_by_bundle({"a": graph, "b": ModelBundle(kind=BundleKind.TORCH)}, ())
