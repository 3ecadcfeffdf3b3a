"""Units on a board: what is built before the time begins, with engines made by hand and a clock that they move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgekd.profiling.agent import bench_units
from edgekd.profiling.agent.bench_units import measured_in_units
from edgekd.profiling.agent.folder import Folder
from edgekd.profiling.agent.loop import CallTimer
from edgekd.profiling.agent.pulse import PULSE_FILE, Pulse
from edgekd.profiling.agent.wire import AgentError
from tests.profiling.fakes import Clock

PLAN = {"warmup_s": 0.0, "burst_s": 1e-3, "min_rounds": 6, "max_rounds": 6, "duration_s": 0.01, "precision": 1e-9}
BUILD_S, OPEN_S = 100.0, 0.001


class Opened:
    """Takes a millisecond of the clock for a call."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.closed = clock, False

    def run(self) -> None:
        self.clock.now_ns += 1_000_000

    def close(self) -> None:
        self.closed = True

    def facts(self) -> dict[str, Any]:
        return {"provider": "toy"}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("edgekd.profiling.agent.pulse.settle", lambda: None)
    monkeypatch.setattr("edgekd.profiling.agent.pulse.CallTimer", lambda call: CallTimer(call, made))
    return made


def measured(
    folder: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, runtime: str, kind: str = "onnx", fails: bool = False
) -> tuple[dict[str, Any], list[Opened]]:
    opened: list[Opened] = []
    built: set[str] = set()

    def open_engine(entry: dict[str, Any], path: Path, cache: Path) -> Opened:
        if fails and len(opened) == 3:
            raise AgentError("not-loaded", "no memory", "close something")
        new = entry["label"] not in built and runtime == "tensorrt" and kind == "onnx"
        clock.now_ns += round((BUILD_S if new else OPEN_S) * 1e9)
        built.add(entry["label"])
        opened.append(Opened(clock))
        return opened[-1]

    monkeypatch.setattr(bench_units, "open_engine", open_engine)
    engines = [{"label": label, "runtime": runtime, "kind": kind, "files": ["0" * 64]} for label in "ab"]
    spec = {"engines": engines, "seed": 1, "units": {"seconds": 0.5, "most": 100, "plan": PLAN}}
    pulse = Pulse(folder / PULSE_FILE)
    try:
        found = measured_in_units(
            Folder(folder), spec, [0, 1], pulse, lambda done: None, clock_s=lambda: clock.now_ns / 1e9
        )
    finally:
        pulse.close()
    return found, opened


@pytest.mark.parametrize(("runtime", "kind"), [("tensorrt", "onnx"), ("tensorrt", "engine"), ("onnxruntime", "onnx")])
def test_building_an_engine_takes_no_time_of_the_measurement(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, runtime: str, kind: str
) -> None:
    found, opened = measured(tmp_path, clock, monkeypatch, runtime, kind)
    ends = found["unit_ends_s"]
    assert ends[-2] < 0.5 <= ends[-1] < 0.6
    assert [len(entry["units"]) for entry in found["measured"].values()] == [len(ends)] * 2
    assert len(opened) >= 2 * len(ends), "engines are opened anew in every unit"
    assert [engine.closed for engine in opened[:-2]] == [True] * (len(opened) - 2)


def test_an_engine_that_does_not_open_again_leaves_nothing_measured(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _ = measured(tmp_path, clock, monkeypatch, "onnxruntime", fails=True)
    assert (found["measured"], found["unit_ends_s"]) == ({}, [])
    assert list(found["failures"].values()) == ["no memory (close something)"]
