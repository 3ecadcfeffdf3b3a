"""`edgekd gate`, `baseline` and `history`: limits, refusals, answers in every form, exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import onnx
import pytest

from edgekd.cli.app import exit_code_of
from edgekd.cli.gate import _budget, is_run, parse_share
from edgekd.core.report import Budget
from edgekd.errors import UserError
from edgekd.gate.artifacts import METRICS_FILE, baseline_of_run
from edgekd.testing.toy_graphs import toy_graph
from tests.gate.test_artifacts import run

OWN = Budget(max_latency_ms=5.0, percentile=99, max_drop=0.02)
NONE: dict[str, Any] = {
    "max_latency_ms": None, "percentile": "50", "max_drop": None, "drop_type": "absolute", "max_size_mib": None
}  # fmt: skip


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a finished run that passes; nothing of the CI system that runs these tests leaks in."""
    for name in ("GITHUB_STEP_SUMMARY", "GITHUB_SHA", "CI_COMMIT_SHA", "GIT_COMMIT", "BUILD_SOURCEVERSION"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / METRICS_FILE).write_text(run().to_json())
    return tmp_path / "out"


def test_limits_that_are_not_given_are_those_of_the_run() -> None:
    assert _budget(NONE, OWN) == OWN
    assert _budget(NONE | {"max_size_mib": 1.0}, OWN) == OWN.model_copy(update={"max_size_mib": 1.0})


def test_a_given_latency_brings_its_own_percentile() -> None:
    found = _budget(NONE | {"max_latency_ms": 3.0}, OWN)
    assert (found.max_latency_ms, found.percentile, found.max_drop) == (3.0, 50, 0.02)


@pytest.mark.parametrize("flag", [{"percentile": "99"}, {"drop_type": "relative"}])
def test_a_qualifier_without_its_limit_is_refused(flag: dict[str, str]) -> None:
    with pytest.raises(UserError, match="to apply to"):
        _budget(NONE | flag, OWN)


def test_a_bundle_without_any_limit_is_refused_before_it_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.onnx").touch()
    assert exit_code_of(["gate", str(tmp_path / "model.onnx")]) == 2
    text = capsys.readouterr().err
    assert "Nothing to judge" in text
    assert "--max-latency-ms" in text


@pytest.mark.parametrize(("text", "share"), [("5%", 0.05), ("0.05", 0.05), (" 2.5 % ", 0.025), ("0", 0.0), (".1", 0.1)])
def test_a_share_is_a_percentage_or_a_fraction(text: str, share: float) -> None:
    assert parse_share(text, "--max-regression") == pytest.approx(share)


@pytest.mark.parametrize("text", ["5", "-1%", "five", "100%", ""])
def test_a_number_that_could_be_meant_either_way_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"expected a share such as 5% or 0\.05"):
        parse_share(text, "--max-regression")


def test_a_run_is_told_from_a_bundle(out: Path, tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "manifest.json").touch()
    (tmp_path / "x.onnx").touch()
    (tmp_path / "model.edgekd").touch()
    assert is_run(out)
    assert is_run(out / METRICS_FILE)
    assert not is_run(tmp_path / "package")
    assert not is_run(tmp_path / "x.onnx")
    assert not is_run(tmp_path / "model.edgekd")


def test_a_bundle_with_the_figures_of_its_run_is_measured_all_the_same(out: Path, tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "manifest.json").write_text('{"schema_version": 2, "files": {"bundle.json": ""}}')
    (package / METRICS_FILE).write_bytes((out / METRICS_FILE).read_bytes())
    assert not is_run(package)


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        ([], 0),
        (["--max-latency-ms", "0.5"], 1),
        (["--max-latency-ms", "1.005"], 5),
        (["--max-latency-ms", "1.005", "--on-inconclusive", "warn"], 0),
        (["--max-latency-ms", "0.5", "--on-inconclusive", "warn"], 1),
    ],
)
def test_the_exit_code_is_the_verdict(out: Path, flags: list[str], code: int) -> None:
    assert exit_code_of(["gate", str(out), *flags]) == code


def test_json_is_a_verdict_with_its_evidence(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(["gate", str(out), "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["status"], found["device"], found["latency"]["p50_ms"]) == ("PASS", "a desk", 1.0)


def test_junit_goes_to_standard_output_or_to_a_file(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = out / "deep" / "junit.xml"
    assert exit_code_of(["gate", str(out), "--format", "junit", "--junit", str(file)]) == 0
    text = capsys.readouterr().out
    assert file.read_text() == text
    assert len(list(ElementTree.fromstring(text).iter("testcase"))) == 2


def test_github_gets_annotations_and_the_summary_of_the_step(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    assert exit_code_of(["gate", str(out), "--format", "github", "--max-latency-ms", "0.5"]) == 1
    assert capsys.readouterr().out.startswith("::error title=latency gate%3A FAIL%2C latency::")
    assert summary.read_text().startswith("before\n### ❌ FAIL: ")


def test_elsewhere_the_github_form_writes_no_summary(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(["gate", str(out), "--format", "github"]) == 0
    assert "::notice title=latency gate%3A PASS::" in capsys.readouterr().out


def test_markdown_names_the_device_and_how_the_latency_came_about(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code_of(["gate", str(out), "--format", "markdown"]) == 0
    text = capsys.readouterr().out
    assert "- device: a desk" in text
    assert "measured, onnxruntime, fp32, 1 thread(s)" in text


def test_verdicts_are_added_to_a_history_and_shown(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, plot = tmp_path / "history.jsonl", tmp_path / "history.svg"
    monkeypatch.setenv("GITHUB_SHA", "0123456789abcdef")
    exit_code_of(["gate", str(out), "--history", str(file)])
    exit_code_of(["gate", str(out), "--history", str(file), "--label", "second", "--max-latency-ms", "0.5"])
    capsys.readouterr()
    assert exit_code_of(["history", str(file), "--plot", str(plot), "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(e["label"], e["status"], e["limit_ms"]) for e in found] == [
        ("0123456789ab", "PASS", 2.0), ("second", "FAIL", 0.5)
    ]  # fmt: skip
    assert plot.read_text().startswith("<svg ")
    assert exit_code_of(["history", str(file), "--last", "1"]) == 0
    shown = capsys.readouterr().out
    assert "second" in shown
    assert "0123456789ab" not in shown


@pytest.mark.parametrize("flags", [["--threads", "2"], ["--time", "5"], ["--baseline-bundle", "b"], ["--data", "d"]])
def test_what_is_for_measuring_is_refused_for_a_run(
    out: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code_of(["gate", str(out), *flags]) == 2
    text = capsys.readouterr().err
    assert f"{flags[0]} is for a bundle that is measured" in text
    assert "/bundle" in text


@pytest.mark.parametrize("of_bundle", [False, True])
def test_a_regression_needs_a_baseline(
    out: Path, tmp_path: Path, of_bundle: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(toy_graph(), tmp_path / "x.onnx")
    target = tmp_path / "x.onnx" if of_bundle else out
    assert exit_code_of(["gate", str(target), "--max-regression", "5%"]) == 2
    assert "--max-regression needs a baseline" in capsys.readouterr().err


def test_the_tolerance_of_a_baseline_can_be_replaced(out: Path, tmp_path: Path) -> None:
    main = tmp_path / "main.json"
    faster = baseline_of_run(run()).model_copy(update={"p50_ms": 0.9, "median_low_ms": 0.9, "median_high_ms": 0.9})
    main.write_text(faster.model_dump_json())
    assert exit_code_of(["gate", str(out), "--baseline", str(main), "--max-regression", "20%"]) == 0
    assert exit_code_of(["gate", str(out), "--baseline", str(main), "--max-regression", "2%"]) == 1


def test_a_baseline_of_another_schema_is_a_usage_error(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "main.json").write_text('{"schema_version": 9}')
    assert exit_code_of(["gate", str(out), "--baseline", str(tmp_path / "main.json")]) == 2
    assert "baseline schema 9, this edgekd reads 1" in capsys.readouterr().err


def test_accepting_a_run_writes_its_baseline_once_and_says_what_changes(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = tmp_path / "ci" / "main.json"
    assert exit_code_of(["baseline", "update", str(main), str(out), "--dry-run"]) == 0
    assert not main.exists()
    assert exit_code_of(["baseline", "update", str(main), str(out), "--reason", "first", "--max-regression", "2%"]) == 0
    written = main.read_bytes()
    assert json.loads(written)["reason"] == "first"
    capsys.readouterr()
    assert exit_code_of(["baseline", "update", str(main), str(out)]) == 0
    assert "but for noise; left as it is" in capsys.readouterr().out
    assert main.read_bytes() == written
    assert exit_code_of(["gate", str(out), "--baseline", str(main)]) == 0


def test_a_missing_bundle_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(["gate", str(tmp_path / "gone.onnx")]) == 2
    assert "No such file or folder" in capsys.readouterr().err
    assert exit_code_of(["baseline", "update", str(tmp_path / "main.json"), str(tmp_path / "gone")]) == 2
    assert "a bundle (a folder or an .edgekd file), or an .onnx file" in capsys.readouterr().err
