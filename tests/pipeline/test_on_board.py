"""`edgekd compress` for a target that is reached over ssh: measured there, refused early, kept when it goes off."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgekd.cli.app import exit_code_of
from edgekd.core.stage import BoardAccess
from edgekd.profiling.remote.for_target import BoardOffer
from edgekd.targets.schema import Target
from tests.pipeline.world import ARCH, World
from tests.profiling.remote.loopback import LoopbackBoard, start_board

CARD: dict[str, Any] = {
    "name": "toy-board",
    "description": "a board that exists in tests only",
    "kind": "cpu",
    "runtimes": [{"runtime": "onnxruntime", "precisions": ["fp32", "int8"], "scheme": "ort-u8s8"}],
    "memory_mib": 1024,
    "peak": {"gmacs_per_s": {"fp32": 50.0, "int8": 100.0}, "bandwidth_gb_s": 10.0, "efficiency": {"other": 0.5},
             "op_overhead_us": 5.0, "sources": ["invented"]},
}  # fmt: skip


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackBoard]:
    started = start_board(tmp_path / "board")
    monkeypatch.setenv("PATH", started.client_path)
    try:
        yield started
    finally:
        started.stop()


def command(world: World, *extra: str) -> list[str]:
    card = world.folder / "toy-board.yaml"
    card.write_text(json.dumps(CARD))
    return [
        "compress", str(world.model), *ARCH, "--target", str(card), "--data", str(world.data), "--students", "none",
        "--calib-samples", "16", "--warmup", "0.05", "--duration", "0.2", "--device", "cpu", "--device", "ssh://board",
        "-o", str(world.folder / "out"), "--store", str(world.folder / "store"), *extra,
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.needs("sshd")
def test_a_run_measures_on_its_board_and_keeps_everything_when_the_board_goes_off(
    world: World, board: LoopbackBoard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = board.folder / "known_hosts"
    host_key = known.read_text()
    with monkeypatch.context() as patch:
        # It answers before the work, and no longer after it.
        def there(access: BoardAccess, target: Target) -> BoardOffer:
            known.write_text("")
            return BoardOffer(runtimes=("onnxruntime",), absent={})

        patch.setattr("edgekd.pipeline.execute.require_board", there)
        assert exit_code_of(command(world, "--max-latency-ms", "1000")) == 3
    said = capsys.readouterr().err
    assert "does not know the board's host key" in said
    known.write_text(host_key)
    assert exit_code_of(command(world, "--max-latency-ms", "1000")) in (0, 5)
    said = capsys.readouterr().err
    assert "teacher-int8-ort  reused: nothing changed" in said
    metrics = json.loads((world.folder / "out" / "metrics.json").read_text())
    profile = metrics["profile"]
    assert (profile["measured"], profile["board"]) == (True, "ssh://board")
    assert {entry["candidate"] for entry in profile["entries"]} == {"teacher-fp32", "teacher-int8-ort"}
    assert all(entry["latency"]["environment"]["board"] == "ssh://board" for entry in profile["entries"])
    assert metrics["verdict"]["status"] != "FAIL"


@pytest.mark.needs("sshd")
def test_a_board_that_is_off_ends_a_run_before_any_work(
    world: World, board: LoopbackBoard, capsys: pytest.CaptureFixture[str]
) -> None:
    board.stop()
    assert exit_code_of(command(world)) == 3
    assert "nothing listens for ssh" in capsys.readouterr().err
    assert not (world.folder / "out" / "bundle").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--device", "gpu"], "--device 'gpu': expected auto, cpu, cuda, or ssh://user@host"),
        (["--device", "ssh://a", "--device", "ssh://b"], "--device names ssh://a and ssh://b"),
        (["--device", "cpu", "--device", "auto"], "--device names cpu and auto"),
        (["--lock-clocks"], "--lock-clocks is for boards"),
        (
            ["--device", "ssh://a", "--target", "host"],
            "--target host is this machine, and --device ssh://a",
        ),
    ],
)
def test_flags_that_do_not_fit_together_are_refused(
    tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["-o", str(tmp_path / "out"), "--store", str(tmp_path / "store")]
    given = ["--target", "raspberry-pi-5"] if "--target" not in flags else []
    assert exit_code_of(["compress", "model.pt", *given, *flags, *places]) == 2
    assert message in capsys.readouterr().err
