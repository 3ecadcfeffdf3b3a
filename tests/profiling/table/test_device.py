"""Where a table is timed: in which runtime here, and on a board."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgekd.core.blobs import FolderBlobs
from edgekd.core.events import SilentReporter
from edgekd.core.report import CandidateLatency, ProfileReport
from edgekd.core.stage import BoardAccess
from edgekd.errors import DeviceUnavailable
from edgekd.profiling.agent.loop import Samples
from edgekd.profiling.remote.calibrate import BoardCalibrator
from edgekd.profiling.remote.request import BoardPlan, Candidate
from edgekd.profiling.table.device import Manner, device_for
from edgekd.targets.schema import RuntimeSupport
from edgekd.testing.toy_graphs import toy_onnx_bundle
from tests.gate.results import latency
from tests.profiling.cards import card

MANNER = Manner(threads=2, duration_s=0.5, interval=0.02, seed=7, reporter=SilentReporter())
ACCESS = BoardAccess(address="ssh://toy", lock_clocks=True)


def board(monkeypatch: pytest.MonkeyPatch) -> None:
    found: Any = SimpleNamespace(ssh=None, python="python3")
    calibrator = BoardCalibrator(board=found, access=ACCESS, runtime="onnxruntime", version="9")
    monkeypatch.setattr("edgekd.profiling.table.device.board_calibrator", lambda access, target: calibrator)


def test_this_machine_times_in_the_first_runtime_that_runs_the_precision() -> None:
    assert device_for(card(here=True), None, "fp32", None, MANNER).runtime == "onnxruntime"


def test_a_precision_that_no_runtime_here_runs_is_refused() -> None:
    with pytest.raises(DeviceUnavailable, match="No runtime of toy-board that is installed here runs INT8") as caught:
        device_for(card(here=True), None, "int8", None, MANNER)
    assert "follow=latency" in str(caught.value.hint)


def test_a_runtime_that_the_card_does_not_have_is_refused_with_those_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    board(monkeypatch)
    for access in (None, ACCESS):
        with pytest.raises(DeviceUnavailable, match="toy-board does not run FP32 in openvino") as caught:
            device_for(card(here=True), access, "fp32", "openvino", MANNER)
        assert "onnxruntime (fp32, fp16)" in str(caught.value.hint)


def test_a_runtime_that_reads_no_graphs_is_refused_before_anything_is_built() -> None:
    runtimes = (RuntimeSupport(runtime="ncnn", precisions=("fp32",)),)
    target = card(here=True).model_copy(update={"runtimes": runtimes})
    with pytest.raises(DeviceUnavailable, match="Engines are timed as ONNX graphs, and ncnn runs none"):
        device_for(target, None, "fp32", "ncnn", MANNER)


def test_measuring_goes_on_until_every_ratio_to_the_first_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine gets slower and faster by a third; what is asked for is the ratio, where there is one."""
    weather = [1_000_000 + 150_000 * (index * 7919 % 5) for index in range(40)]
    rounds = Samples(rounds_ns=[[value] * 3 for value in weather])
    steady = Samples(rounds_ns=[[1_000_000 + index % 3] * 3 for index in range(40)])
    asked: list[Any] = []

    def measure(engines: Any, blobs: Any, plan: Any, *, enough: Any, **_: Any) -> Any:
        asked.append(enough)
        return SimpleNamespace(outcomes={}, notes=[])

    monkeypatch.setattr("edgekd.profiling.table.device.measure_isolated", measure)
    (tmp_path / "scratch").mkdir()
    blobs = FolderBlobs(tmp_path / "blobs")
    bundle = toy_onnx_bundle(blobs, tmp_path / "scratch")
    device_for(card(here=True), None, "fp32", None, MANNER).time({"whole": bundle, "kind0-8": bundle}, blobs)
    (enough,) = asked
    assert enough({"whole": rounds, "kind0-8": rounds})
    assert not enough({"whole": steady, "kind0-8": rounds})
    assert not enough({"kind0-8": rounds})  # another group, for want of memory: its medians are all there is
    assert enough({"kind0-8": steady})


def test_a_board_times_the_engines_by_turns_in_its_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board(monkeypatch)
    seen: list[BoardPlan] = []

    def profile(ssh: object, candidates: Sequence[Candidate], plan: BoardPlan, **_: Any) -> Any:
        seen.append(plan)
        entries = [
            CandidateLatency(
                candidate=candidate.name,
                runtime="onnxruntime",
                precision="fp32",
                size_mib=1.0,
                latency=latency(2.5) if candidate.name == "whole" else None,
                failure=None if candidate.name == "whole" else "no memory",
            )
            for candidate in candidates
        ]
        report = ProfileReport(device="toy", measured=True, threads=(2,), entries=tuple(entries))
        return SimpleNamespace(report=report, decisions=("Clocks moved.",))

    monkeypatch.setattr("edgekd.profiling.remote.calibrate.profile_on_board", profile)
    blobs = FolderBlobs(tmp_path / "blobs")
    (tmp_path / "scratch").mkdir()
    bundle = toy_onnx_bundle(blobs, tmp_path / "scratch")
    device = device_for(card(here=False), ACCESS, "fp32", None, MANNER)
    found, said = device.time({"whole": bundle, "kind0-8": bundle}, blobs)
    assert found["whole"] == latency(2.5)
    assert isinstance(found["kind0-8"], DeviceUnavailable)
    assert said == ("Clocks moved.",)
    (plan,) = seen
    assert (plan.runtimes, plan.threads, plan.duration_s, plan.seed) == (("onnxruntime",), (2,), 0.5, 7)
    assert (plan.precision, plan.lock_clocks) == (0.02, True)
