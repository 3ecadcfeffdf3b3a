"""Gates on a board whose engines are clockwork: the same answers as on this machine, from jobs of many units."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import onnx
import pytest

from edgekd.core.events import RecordingReporter
from edgekd.core.report import Budget
from edgekd.core.stage import BoardAccess
from edgekd.errors import DeviceUnavailable, Inconclusive, UserError
from edgekd.gate.baseline import baseline_from_results
from edgekd.gate.report import GateReport
from edgekd.pipeline.gating.accept import accepted_bundle
from edgekd.pipeline.gating.board import FIRST_S, LONGEST_S
from edgekd.pipeline.gating.judge import gate_bundle
from edgekd.pipeline.gating.request import GateRequest
from edgekd.testing.toy_graphs import toy_graph
from tests.gate.results import latency
from tests.pipeline.gating.bench import Bench, bench
from tests.pipeline.gating.fake_board import MACHINE, FakeBoard

__all__ = ["bench"]

DEVICE = f"Toy board, 4 cores, {MACHINE['architecture']}; onnxruntime 1.2"
BOARD = BoardAccess(address="ssh://toy")


@pytest.fixture
def graphs(tmp_path: Path) -> tuple[Path, Path]:
    paths = (tmp_path / "new.onnx", tmp_path / "old.onnx")
    for seed, path in enumerate(paths):
        onnx.save(toy_graph(seed=seed), path)
    return paths


def use(board: FakeBoard, monkeypatch: pytest.MonkeyPatch) -> FakeBoard:
    monkeypatch.setattr("edgekd.pipeline.gating.board.board_from_access", lambda access: board)
    return board


def noisy(candidate_ms: float, **changes: Any) -> FakeBoard:
    rng = random.Random(0)
    costs = {"candidate": candidate_ms, "baseline": 1.0}
    return FakeBoard(costs, noise=lambda: 1 + 0.01 * rng.random(), **changes)


def gate(request: GateRequest, reporter: RecordingReporter | None = None) -> GateReport:
    return gate_bundle(request, reporter or RecordingReporter())


@pytest.mark.parametrize(("cost_ms", "status"), [(1.0, "PASS"), (1.05, "FAIL"), (0.5, "PASS")])
def test_a_bundle_is_judged_by_its_ratio_to_the_accepted_one_in_one_job(
    graphs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, cost_ms: float, status: str
) -> None:
    board = use(noisy(cost_ms), monkeypatch)
    report = gate(GateRequest(target=graphs[0], baseline_bundle=graphs[1], max_regression=0.02, board=BOARD))
    assert report.status == status
    assert report.device == DEVICE
    assert report.checks[0].value == pytest.approx(cost_ms, rel=0.005)
    assert (len(board.specs), board.released, len(board.pushed)) == (1, 1, 2)
    assert [engine["label"] for engine in board.specs[0]["engines"]] == [
        "candidate@onnxruntime, 1 threads",
        "baseline@onnxruntime, 1 threads",
    ]
    assert report.latency is not None
    assert report.latency.environment["board"] == "ssh://toy"
    assert report.seconds < FIRST_S, "units behind the answer are not looked at"


def test_a_ratio_at_the_limit_takes_all_the_time_in_growing_jobs_of_different_orders(
    graphs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    board = use(noisy(1.02), monkeypatch)
    request = GateRequest(target=graphs[0], baseline_bundle=graphs[1], max_regression=0.02, board=BOARD)
    report = gate(request)
    assert report.status == "INCONCLUSIVE"
    assert 59 < report.seconds <= 60.5
    asked = [spec["units"]["seconds"] for spec in board.specs]
    assert asked[0] == FIRST_S
    assert max(asked) == LONGEST_S
    assert len({spec["seed"] for spec in board.specs}) == len(asked) == board.released


def test_the_answer_in_milliseconds_is_for_the_board_and_takes_a_few_seconds(
    graphs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(noisy(1.0), monkeypatch)
    for limit_ms, status in ((2.0, "PASS"), (0.9, "FAIL")):
        report = gate(GateRequest(target=graphs[0], budget=Budget(max_latency_ms=limit_ms), board=BOARD))
        assert (report.status, report.device) == (status, DEVICE)
        assert report.seconds >= 5


def test_numbers_are_compared_with_where_the_board_and_its_runtime_are_the_same(
    graphs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(noisy(1.0), monkeypatch)
    for device, status in ((DEVICE, "PASS"), (DEVICE.replace("1.2", "1.3"), "INCONCLUSIVE")):
        baseline = baseline_from_results(device, latency(1.0), None, 1.0)
        report = gate(GateRequest(target=graphs[0], baseline=baseline, baseline_path=graphs[0], board=BOARD))
        assert report.status == status


def test_a_baseline_is_accepted_from_a_board(
    graphs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(noisy(1.5), monkeypatch)
    found = accepted_bundle(GateRequest(target=graphs[0], board=BOARD), tmp_path / "main.json", RecordingReporter())
    assert found.device == DEVICE
    assert found.p50_ms == pytest.approx(1.5, rel=0.01)


def test_a_board_that_throttled_gives_no_verdict(graphs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    use(noisy(1.0, throttles=True), monkeypatch)
    with pytest.raises(Inconclusive, match=r"throttled while measuring.*Nothing was judged"):
        gate(GateRequest(target=graphs[0], budget=Budget(max_latency_ms=2.0), board=BOARD))


def test_bundles_that_no_board_runs_are_refused_before_anything_is_measured(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = use(noisy(1.0), monkeypatch)
    web = bench.package("web", 1.0, seed=1, runtime="ort-web-node")
    with pytest.raises(UserError, match="ort-web-node is what the bundle was chosen for") as caught:
        gate(GateRequest(target=web, board=BOARD))
    assert caught.value.hint == "--runtime onnxruntime"
    with pytest.raises(DeviceUnavailable, match="tensorrt cannot be used there"):
        gate(GateRequest(target=web, runtime="tensorrt", board=BOARD))
    assert board.specs == []
    assert gate(GateRequest(target=web, runtime="onnxruntime", board=BOARD)).device == DEVICE


def test_a_bundle_that_was_made_for_another_device_is_not_judged_on_this_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = use(noisy(1.0), monkeypatch)
    other = bench.package("pi", 1.0, seed=1, target="raspberry-pi-5")
    with pytest.raises(DeviceUnavailable, match="ssh://toy is not a raspberry-pi-5"):
        gate(GateRequest(target=other, board=BOARD))
    board.machine = {**MACHINE, "board_model": "Raspberry Pi 5 Model B"}
    assert gate(GateRequest(target=other, board=BOARD)).device == DEVICE
