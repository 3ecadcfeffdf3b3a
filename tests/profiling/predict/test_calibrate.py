"""Calibrating a device through a callable that measures, here a made-up roofline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from edgekd.errors import BuildFailed, DeviceUnavailable
from edgekd.nn.onnx_count import onnx_costs_from_file
from edgekd.profiling.predict.calibrate import Medians, calibration_of
from edgekd.targets.latency import latency_model_from_target
from tests.profiling.cards import card

TRUTH = latency_model_from_target(card(here=True)).model_copy(
    update={"overhead_us_per_op": 9.0, "gmacs_per_s": {"fp32": 20.0, "fp16": 40.0}}
)


def board(paths: Mapping[str, Path]) -> Medians:
    return {name: TRUTH.predict_ms(onnx_costs_from_file(path), "fp32") for name, path in paths.items()}


def test_the_fitted_model_predicts_what_the_device_would_take(tmp_path: Path) -> None:
    found = calibration_of(card(here=False), "onnxruntime", 1, board, tmp_path)
    assert found.networks == 14
    assert found.model.origin == "fitted"
    assert found.model.relative_error == pytest.approx(0.0, abs=0.05)
    for path in tmp_path.glob("*.onnx"):
        costs = onnx_costs_from_file(path)
        assert found.model.predict_ms(costs, "fp32") == pytest.approx(TRUTH.predict_ms(costs, "fp32"), rel=0.05)


def test_a_device_that_times_too_little_is_not_calibrated_and_says_why(tmp_path: Path) -> None:
    def broken(paths: Mapping[str, Path]) -> Medians:
        return {name: 1.0 if index < 2 else BuildFailed("no memory") for index, name in enumerate(paths)}

    with pytest.raises(DeviceUnavailable, match=r"2 networks could be timed.*no memory"):
        calibration_of(card(here=False), "onnxruntime", 1, broken, tmp_path)
