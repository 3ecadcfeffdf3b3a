"""OpenVINO's devices: the one that was asked for runs, or nothing does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest

from edgekd.errors import DeviceUnavailable
from edgekd.runtimes.engines.openvino_request import executing
from edgekd.runtimes.openvino import GPU, _settings
from edgekd.runtimes.session import RUNTIMES
from edgekd.testing.toy_graphs import toy_graph


class Compiled:
    def __init__(self, *devices: str) -> None:
        self.devices = devices

    def get_property(self, name: str) -> Any:
        assert name == "EXECUTION_DEVICES"
        return list(self.devices)


def test_auto_says_which_device_it_took(tmp_path: Path) -> None:
    onnx.save(toy_graph(), tmp_path / "model.onnx")
    with RUNTIMES.get("openvino:auto").open(tmp_path / "model.onnx", threads=1, batch=1) as session:
        found = session.environment()
        logits = session.infer({"images": np.zeros((1, 3, 8, 8), np.float32)})["logits"]
    assert found["runtime"] == "openvino:auto"
    assert str(found["provider"]).partition(".")[0] in ("CPU", "GPU", "NPU")
    assert logits.shape == (1, 4)


def test_a_device_that_is_not_here_is_named_with_those_that_are() -> None:
    if any(name.startswith("GPU") for name in openvino.Core().available_devices):
        pytest.skip("this machine has a GPU that OpenVINO runs")
    found = GPU.availability()
    assert not found.ok
    assert found.reason == f"OpenVINO finds no GPU here; it finds {', '.join(openvino.Core().available_devices)}"


def test_a_model_that_runs_elsewhere_than_asked_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(toy_graph(), tmp_path / "model.onnx")
    monkeypatch.setattr("edgekd.runtimes.openvino.executing", lambda compiled: ["GPU.0"])
    with pytest.raises(DeviceUnavailable, match=r"asked for the CPU, and would run on GPU\.0"):
        RUNTIMES.get("openvino").open(tmp_path / "model.onnx")


def test_devices_that_only_stand_by_do_not_count() -> None:
    assert executing(Compiled("GPU.0", "(CPU)")) == ["GPU.0"]


def test_float32_is_asked_for_where_the_device_has_it() -> None:
    assert _settings("CPU", 2) == {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": 2,
    }
    assert _settings("GPU", 2) == {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    assert "INFERENCE_PRECISION_HINT" not in _settings("NPU", None)
    assert _settings("AUTO", 2)["DEVICE_PROPERTIES"]["CPU"]["INFERENCE_NUM_THREADS"] == 2
