"""`edgekd profile --device` and `--lab`, in this process; the last ones against a real OpenSSH server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

from edgekd.cli.app import exit_code_of
from edgekd.testing.toy_graphs import toy_graph
from tests.profiling.remote.loopback import LoopbackBoard, start_board

QUICK = ["--warmup", "0", "--duration", "0.05", "--precision", "100"]

MEASURED = (0, 5)
"""A machine that is busy with other things may know its median too badly; that is no failure of these tests."""


@pytest.fixture
def model(tmp_path: Path) -> str:
    onnx.save(toy_graph(), tmp_path / "toy.onnx")
    return str(tmp_path / "toy.onnx")


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackBoard]:
    started = start_board(tmp_path / "board")
    monkeypatch.setenv("PATH", started.client_path)
    try:
        yield started
    finally:
        started.stop()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--device", "ssh://a", "--lab", "lab.yaml"], "--device names one board and --lab many"),
        (["--tag", "orin"], "--tag is for boards, and none was named"),
        (["--lock-clocks"], "--lock-clocks is for boards"),
        (["--device", "ssh://a", "--offline", "8"], "--offline is measured on this machine only"),
        (["--device", "ssh://a", "--tag", "orin"], "--tag chooses boards of a lab file"),
        (["--lab", "lab.yaml", "--device-python", "x"], "--device-python is for one board"),
        (["--device", "a@b"], "--device 'a@b': expected ssh://user@host"),
        (["--lab", "/nowhere/lab.yaml"], "Lab file /nowhere/lab.yaml"),
    ],
)
def test_flags_of_boards_that_do_not_fit_together_are_refused(
    model: str, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code_of(["profile", model, *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.needs("sshd")
def test_a_board_gives_the_report_of_a_local_profile(
    board: LoopbackBoard, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code_of(["profile", model, "--device", "ssh://board", *QUICK, "--format", "json"]) in MEASURED
    report = json.loads(capsys.readouterr().out)
    assert (report["measured"], report["entries"][0]["latency"]["origin"]) == (True, "measured")
    assert exit_code_of(["profile", model, "--device", "ssh://board", *QUICK, "--layers"]) in MEASURED
    shown = capsys.readouterr().out
    assert "p50 ms" in shown
    assert "ONNX Runtime profile, which slows what it records" in shown
    assert "Conv" in shown


@pytest.mark.slow
@pytest.mark.needs("sshd")
def test_a_lab_is_one_table_in_which_a_board_that_fails_has_its_reason(
    board: LoopbackBoard, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = tmp_path / "lab.yaml"
    lab.write_text(
        "boards:\n  here: {address: ssh://board, tags: [x], target: host}\n"
        "  dead: {address: 'ssh://127.0.0.1:1', tags: [x]}\n  other: {address: ssh://nowhere.invalid}\n"
    )
    lab_command = ["profile", model, "--lab", str(lab), "--runtime", "onnxruntime", *QUICK]
    assert exit_code_of([*lab_command, "--tag", "x"]) == 3
    shown = capsys.readouterr().out
    assert "other" not in shown
    (here,) = [line for line in shown.splitlines() if line.startswith("here ")]
    assert "toy" in here
    assert "failed" not in here
    assert "dead: ssh://127.0.0.1:1: the machine is there, but nothing listens for ssh on that port" in shown
    assert exit_code_of([*lab_command, "--tag", "here", "--format", "json"]) in MEASURED
    found = json.loads(capsys.readouterr().out)["boards"]
    assert found["here"]["report"]["entries"][0]["latency"]["n"] > 0


@pytest.mark.slow
@pytest.mark.needs("sshd")
def test_a_gate_measures_the_candidate_and_the_baseline_on_the_board(
    board: LoopbackBoard, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["gate", model, "--baseline-bundle", model, "--max-regression", "90%", "--device", "ssh://board"]
    assert exit_code_of([*asked, "--time", "5", "--format", "json"]) in MEASURED
    report = json.loads(capsys.readouterr().out)
    assert report["status"] in ("PASS", "INCONCLUSIVE")
    assert report["latency"]["environment"]["board"] == "ssh://board"
    assert report["baseline_latency"]["n"] > 0
    assert "onnxruntime" in report["device"]
    assert list(board.cache.glob("jobs/*")) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lock-clocks"], "--lock-clocks is for boards"),
        (["--device", "a@b"], "--device 'a@b': expected ssh://user@host"),
        (["--device", "ssh://a", "--lab", "lab.yaml"], "--device names one board and --lab many"),
        (["--lab", "LAB", "--tag", "x"], "This verb takes one board, and the lab has 2 that fit: a, b."),
    ],
)
def test_a_gate_takes_one_board(
    model: str, tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = tmp_path / "lab.yaml"
    lab.write_text("boards:\n  a: {address: ssh://a, tags: [x]}\n  b: {address: ssh://b, tags: [x]}\n")
    given = [str(lab) if flag == "LAB" else flag for flag in flags]
    assert exit_code_of(["gate", model, "--max-latency-ms", "5", *given]) == 2
    assert message in capsys.readouterr().err


def test_a_board_is_for_calibrating_and_not_for_listing_targets(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(["targets", "raspberry-pi-5", "--device", "ssh://pi"]) == 2
    assert "--device and --lab are for calibrating" in capsys.readouterr().err


@pytest.mark.needs("sshd")
def test_a_gate_without_its_board_ends_with_the_code_of_a_device_that_is_not_there(
    board: LoopbackBoard, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    board.stop()
    assert exit_code_of(["gate", model, "--max-latency-ms", "5", "--device", "ssh://board"]) == 3
    assert "nothing listens for ssh" in capsys.readouterr().err
