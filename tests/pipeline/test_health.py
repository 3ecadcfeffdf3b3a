from __future__ import annotations

import pytest

from edgekd.export.convert import CONVERTERS
from edgekd.pipeline.health import _converters
from edgekd.runtimes.session import Availability


def answers(monkeypatch: pytest.MonkeyPatch, answer: Availability) -> None:
    for name in CONVERTERS:
        monkeypatch.setattr(type(CONVERTERS.get(name)), "availability", lambda self: answer)


def test_a_converter_is_listed_with_what_it_writes_and_where_that_was_run(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, Availability(ok=True, version="1.2"))
    found = {finding.name: finding for finding in _converters()}
    assert set(found) == {f"converter {name}" for name in CONVERTERS}
    assert found["converter ncnn"].detail.startswith("pnnx 1.2 writes fp32, fp16; ")
    assert "not on boards" in found["converter ncnn"].detail


def test_a_missing_converter_is_listed_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, Availability(ok=False, reason="not there", install="pip install it"))
    assert {(finding.state, finding.fix) for finding in _converters()} == {("missing", "pip install it")}
