"""Calibrations: kept beside the cards, taken in when a card is loaded, and said."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.errors import UserError
from edgekd.targets.calibration import (
    FOLDER_VARIABLE,
    Calibration,
    calibrated,
    load_calibration,
    save_calibration,
)
from edgekd.targets.latency import LatencyModel, latency_model_from_target
from edgekd.targets.load import load_target

MODEL = LatencyModel(
    target="jetson-orin-nano",
    fixed_us=20.0,
    overhead_us_per_op=7.0,
    gmacs_per_s={"fp32": 100.0, "fp16": 200.0},
    efficiency={"conv": 1.0, "depthwise": 0.1, "linear": 0.5, "other": 1.0},
    bandwidth_gb_s=30.0,
    origin="fitted",
    relative_error=0.04,
)


def made(device: str) -> Calibration:
    return Calibration(
        target="jetson-orin-nano",
        device=device,
        runtime="tensorrt 10.3",
        threads=1,
        networks=14,
        measured_at="2025-01-02",
        model=MODEL,
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    return tmp_path


def test_a_later_run_predicts_with_the_calibration_and_says_so(folder: Path) -> None:
    card = load_target("jetson")
    save_calibration(made(card.description))
    found = load_target("jetson")
    assert latency_model_from_target(found) == MODEL
    assert found.peak.sources[0].startswith("calibrated: a roofline fitted to 14 networks timed in tensorrt 10.3")
    assert found.digest != card.digest, "cached results that used the card must not be reused"


def test_a_calibration_of_another_processor_is_not_taken(folder: Path) -> None:
    card = load_target("jetson")
    assert calibrated(card, made("another board")) == card


def test_without_a_file_there_is_no_calibration_and_a_broken_one_is_named(folder: Path) -> None:
    assert load_calibration("jetson-orin-nano") is None
    (folder / "jetson-orin-nano.json").write_text("{")
    with pytest.raises(UserError, match=r"jetson-orin-nano\.json: not readable JSON"):
        load_target("jetson")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        save_calibration(made("x"), blocked)
