"""What `edgekd doctor` says of runtimes on devices and of converters."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.export.convert import CONVERTERS
from edgekd.pipeline.health import DEVICES_TRIED, Finding, _converters, _devices
from edgekd.runtimes.addons import ADDONS, LITERT_CONVERTER
from edgekd.runtimes.onnxruntime_providers import CUDA
from edgekd.runtimes.session import RUNTIMES, Availability


def answers(monkeypatch: pytest.MonkeyPatch, answer: Availability) -> None:
    for name in CONVERTERS:
        monkeypatch.setattr(type(CONVERTERS.get(name)), "availability", lambda self: answer)


def test_a_converter_is_listed_with_what_it_writes_and_where_that_was_run(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, Availability(ok=True, version="1.2"))
    found = {finding.name: finding for finding in _converters()}
    assert set(found) == {f"converter {name}" for name in CONVERTERS}
    assert found["converter ncnn"].detail.startswith("pnnx 1.2 writes fp32, fp16; ")
    assert "on no ARM board" in found["converter ncnn"].detail


def test_a_missing_converter_is_listed_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, Availability(ok=False, reason="not there", install="pip install it"))
    assert {(finding.state, finding.fix) for finding in _converters()} == {("note", "pip install it")}


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
    assert (found.state, found.fix) == ("note", "edgekd doctor --install litert-converter")
    part = ADDONS[LITERT_CONVERTER]
    proof = part.folder / part.proof
    proof.parent.mkdir(parents=True)
    proof.touch()
    found = next(finding for finding in _converters() if finding.name == "converter litert")
    assert found.state == "ok"
    assert found.detail.startswith("litert-torch 0.10.0 writes fp32, int8")
