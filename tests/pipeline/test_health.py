"""What `edgekd doctor` says of runtimes on devices and of converters."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.pipeline.health import DEVICES_TRIED, Finding, _converters, _devices
from edgekd.runtimes.addons import ADDONS, LITERT_CONVERTER
from edgekd.runtimes.onnxruntime_providers import CUDA
from edgekd.runtimes.session import RUNTIMES, Availability


def devices() -> Finding:
    (found,) = _devices()
    return found


def test_every_runtime_on_a_device_is_here_or_not_here() -> None:
    here, _, missing = devices().detail.partition("; not here: ")
    for name in RUNTIMES.on_devices:
        assert (name in here) != (name in missing)


def test_a_device_that_was_never_tried_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CUDA, "availability", lambda: Availability(ok=True, version="1"))
    assert "onnxruntime:cuda (not run on hardware by this version's tests)" in devices().detail
    assert set(RUNTIMES.on_devices) >= DEVICES_TRIED


def test_a_converter_that_is_not_installed_names_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKD_ADDONS", str(tmp_path))
    found = next(finding for finding in _converters() if finding.name == "converter litert")
    assert (found.state, found.fix) == ("missing", "edgekd doctor --install litert-converter")
    part = ADDONS[LITERT_CONVERTER]
    proof = part.folder / part.proof
    proof.parent.mkdir(parents=True)
    proof.touch()
    found = next(finding for finding in _converters() if finding.name == "converter litert")
    assert found.state == "ok"
    assert found.detail.startswith("litert-torch 0.10.0 writes fp32, int8")
