from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekd.profiling.agent.clocks import clock_state, locked, restore
from edgekd.profiling.agent.wire import AgentError


class JetsonBoard:
    """Programs named as NVIDIA's that write down how they are called."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log = folder / "calls"
        bin_folder = folder / "bin"
        bin_folder.mkdir()
        for name, line in (
            (
                "jetson_clocks",
                f'echo "jetson_clocks $*" >> {self.log}; [ "$1" = --show ] && echo "GPU MinFreq=306000000"',
            ),
            ("sudo", f'shift; echo "sudo" >> {self.log}; exec "$@"'),
        ):
            program = bin_folder / name
            program.write_text(f"#!/bin/sh\n{line}\nexit 0\n")
            program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{bin_folder}:/usr/bin:/bin")

    def calls(self) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if line != "sudo"] if self.log.exists() else []


@pytest.fixture
def jetson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JetsonBoard:
    return JetsonBoard(tmp_path, monkeypatch)


@pytest.fixture
def cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two cores with the governor `ondemand`, on a board without NVIDIA's programs."""
    monkeypatch.setenv("PATH", "/nowhere")
    for core in range(2):
        path = tmp_path / "cpu" / f"cpu{core}" / "cpufreq" / "scaling_governor"
        path.parent.mkdir(parents=True)
        path.write_text("ondemand\n")
    return tmp_path / "cpu"


def governors(cpus: Path) -> list[str]:
    return [path.read_text().strip() for path in sorted(cpus.glob("*/cpufreq/scaling_governor"))]


def test_a_jetson_is_stored_fixed_and_restored_in_this_order(jetson: JetsonBoard, tmp_path: Path) -> None:
    with locked(tmp_path) as said:
        assert jetson.calls() == [f"jetson_clocks --store {tmp_path}/clocks.jetson", "jetson_clocks "]
    assert jetson.calls()[2:] == [f"jetson_clocks --restore {tmp_path}/clocks.jetson"]
    assert said == ["clocks were fixed with jetson_clocks and restored afterwards"]


def test_clocks_are_restored_after_a_failure(jetson: JetsonBoard, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="engine broke"), locked(tmp_path):
        raise RuntimeError("engine broke")
    assert jetson.calls()[-1].startswith("jetson_clocks --restore")
    assert not restore(tmp_path)


def test_what_a_killed_measurement_left_fixed_is_restored_by_the_next(cpus: Path, tmp_path: Path) -> None:
    block = locked(tmp_path, cpus)
    block.__enter__()  # and never left: its process was killed
    assert governors(cpus) == ["performance", "performance"]
    assert restore(tmp_path, cpus)
    assert governors(cpus) == ["ondemand", "ondemand"]
    assert not restore(tmp_path, cpus)


def test_a_board_without_jetson_clocks_gets_the_steady_governor_for_the_block(cpus: Path, tmp_path: Path) -> None:
    with locked(tmp_path, cpus) as said:
        assert governors(cpus) == ["performance", "performance"]
    assert governors(cpus) == ["ondemand", "ondemand"]
    assert "performance" in said[0]


def test_a_board_with_nothing_to_fix_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(AgentError, match="neither jetson_clocks nor a governor") as caught, locked(tmp_path, tmp_path):
        pass
    assert "without --lock-clocks" in caught.value.hint


def test_a_user_who_may_not_fix_clocks_is_told_what_it_takes(jetson: JetsonBoard, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "jetson_clocks"
    program.write_text("#!/bin/sh\necho 'a password is required' >&2\nexit 1\n")
    with pytest.raises(AgentError, match="a password is required") as caught, locked(tmp_path):
        pass
    assert "NOPASSWD" in caught.value.hint


def test_a_saved_state_cannot_make_it_write_elsewhere(cpus: Path, tmp_path: Path) -> None:
    victim = tmp_path / "elsewhere"
    victim.write_text("mine")
    (tmp_path / "clocks.saved.json").write_text(json.dumps({"governors": {str(victim): "x"}}))
    assert restore(tmp_path, cpus)
    assert victim.read_text() == "mine"


def test_the_state_of_a_jetsons_clocks_is_read_and_nothing_is_set(jetson: JetsonBoard) -> None:
    assert clock_state() == {"jetson_clocks": ["GPU MinFreq=306000000"]}
    assert jetson.calls() == ["jetson_clocks --show"]


def test_another_board_has_no_such_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert clock_state() == {}
