"""Calibrating a target on a board: which board and runtime it takes, and how timings become medians."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from edgekd.cli.app import exit_code_of
from edgekd.core.events import RecordingReporter
from edgekd.core.report import CandidateLatency, ProfileReport
from edgekd.core.stage import BoardAccess
from edgekd.errors import DeviceUnavailable, UserError
from edgekd.profiling.agent.engines import ADAPTERS
from edgekd.profiling.predict.nets import probe_nets
from edgekd.profiling.remote.calibrate import BoardCalibrator, board_calibrator
from edgekd.profiling.remote.identity import require_target
from edgekd.profiling.remote.request import BoardPlan, Candidate, fits
from edgekd.targets.load import load_target
from edgekd.targets.schema import Target
from tests.gate.results import latency
from tests.profiling.cards import card
from tests.profiling.remote.loopback import LoopbackBoard

PI = {"cpu_model": "Raspberry Pi 5 Model B", "board_model": "Raspberry Pi 5 Model B", "architecture": "aarch64"}
JETSON = {"cpu_model": "x", "board_model": "NVIDIA Jetson Orin Nano Developer Kit", "architecture": "aarch64"}
ACCESS = BoardAccess(address="ssh://toy")


def toy(monkeypatch: pytest.MonkeyPatch, machine: dict[str, str], *runtimes: str) -> None:
    offers = {name: {"ok": name in runtimes, "version": "9.9", "install": f"install {name}"} for name in ADAPTERS}
    board = SimpleNamespace(
        name="toy",
        python="python3",
        ssh=SimpleNamespace(address=SimpleNamespace(command="ssh toy")),
        hello=lambda: {"machine": machine, "runtimes": offers},
    )
    monkeypatch.setattr("edgekd.profiling.remote.calibrate.board_from_access", lambda access: board)


def test_the_first_runtime_of_the_card_that_the_board_has_is_calibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    toy(monkeypatch, PI, "onnxruntime", "tensorrt")
    assert board_calibrator(ACCESS, load_target("raspberry-pi-5")).runtime == "onnxruntime"
    toy(monkeypatch, JETSON, "onnxruntime", "tensorrt")
    found = board_calibrator(ACCESS, load_target("jetson-orin-nano"))
    assert (found.runtime, found.version) == ("tensorrt", "9.9")


def test_a_board_without_the_runtimes_of_the_card_is_refused_with_the_command_that_installs_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    toy(monkeypatch, JETSON, "onnxruntime")
    with pytest.raises(DeviceUnavailable, match="tensorrt cannot be used there") as caught:
        board_calibrator(ACCESS, load_target("jetson-orin-nano"))
    assert caught.value.hint == "ssh toy install tensorrt"


def test_a_board_that_runs_no_graphs_is_refused_with_the_command_that_installs_what_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    toy(monkeypatch, PI, "executorch", "ncnn")
    with pytest.raises(DeviceUnavailable, match="toy has executorch and ncnn; networks are timed there as ONNX") as err:
        board_calibrator(ACCESS, load_target("raspberry-pi-5"))
    assert err.value.hint == "ssh toy install onnxruntime"


def test_a_card_that_describes_this_machine_takes_no_numbers_of_a_board() -> None:
    with pytest.raises(UserError, match="holds facts of this machine"):
        board_calibrator(ACCESS, load_target("host"))


@pytest.mark.parametrize(
    ("machine", "target", "said"),
    [
        (PI, "raspberry-pi-4", "calls itself 'Raspberry Pi 5 Model B', the card expects 'Raspberry Pi 4'"),
        (PI, "x86-cpu", "its architecture is aarch64, the card's x86_64"),
        (PI | {"board_model": None}, "raspberry-pi-5", "calls itself 'Raspberry Pi 5 Model B', the card expects"),
    ],
)
def test_a_board_that_is_another_device_is_refused(machine: dict[str, Any], target: str, said: str) -> None:
    with pytest.raises(DeviceUnavailable, match=f"toy is not a {target}") as caught:
        require_target("toy", machine, load_target(target))
    assert said in caught.value.message


@pytest.mark.parametrize(("machine", "target"), [(PI, "raspberry-pi-5"), (PI, "arm-cpu"), (JETSON, "jetson-orin-nano")])
def test_a_board_that_is_the_target_is_taken(machine: dict[str, Any], target: str) -> None:
    require_target("toy", machine, load_target(target))


def test_medians_come_home_by_name_and_what_was_not_timed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[BoardPlan] = []

    def profile(ssh: object, candidates: Sequence[Candidate], plan: BoardPlan, **_: Any) -> Any:
        seen.append(plan)
        fine, broken = [c for c in candidates if fits(c.bundle, "tensorrt")]
        assert broken.bundle.inputs[0].shape == (1, 16, 32, 32)
        entries = (
            CandidateLatency(
                candidate=fine.name, runtime="tensorrt", precision="fp32", size_mib=1.0, latency=latency(2.5)
            ),
            CandidateLatency(
                candidate=broken.name, runtime="tensorrt", precision="fp32", size_mib=1.0, failure="no memory"
            ),
        )
        report = ProfileReport(device="toy", measured=True, threads=(1,), entries=entries)
        return SimpleNamespace(report=report, decisions=())

    monkeypatch.setattr("edgekd.profiling.remote.calibrate.profile_on_board", profile)
    board: Any = SimpleNamespace(ssh=None, python="python3")
    access = BoardAccess(address="ssh://toy", lock_clocks=True)
    calibrator = BoardCalibrator(board=board, access=access, runtime="tensorrt", version="10")
    paths = {}
    for net in (*probe_nets("fp32")[:2], probe_nets("int8")[0]):
        paths[net.name] = tmp_path / f"{net.name}.onnx"
        onnx.save(net.model, paths[net.name])
    fine, broken, whole = calibrator.measure(threads=1, duration_s=0.1, reporter=RecordingReporter())(paths).values()
    assert fine == 2.5
    assert isinstance(broken, DeviceUnavailable)
    assert "no memory" in broken.message
    assert isinstance(whole, DeviceUnavailable)
    assert "does not take this form of INT8" in whole.message
    assert (seen[0].lock_clocks, seen[0].runtimes) == (True, ("tensorrt",))


@pytest.mark.slow
@pytest.mark.needs("sshd")
def test_a_card_is_calibrated_on_a_board_and_later_runs_predict_with_it(
    board: LoopbackBoard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEKD_CALIBRATIONS", str(tmp_path / "kept"))
    path = tmp_path / "toy.yaml"
    path.write_text(yaml_of(card(here=False)))
    asked = ["targets", "calibrate", str(path), "--device", "ssh://board", "--duration", "0.02", "--format", "json"]
    assert exit_code_of(asked) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["networks"] >= 14
    assert found["runtime"].startswith("onnxruntime ")
    assert load_target(str(path)).calibrated is not None


def yaml_of(target: Target) -> str:
    plain = target.plain()
    return json.dumps({key: value for key, value in plain.items() if key not in ("measured_here", "calibrated")})
