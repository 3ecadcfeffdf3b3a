"""Which candidates are measured on a board, and what is said of those that are not; the board is a stand-in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from edgekd.core.events import RecordingReporter, Reporter
from edgekd.core.report import ProfileReport
from edgekd.errors import DeviceUnavailable
from edgekd.profiling.agent.engines import ADAPTERS
from edgekd.profiling.remote import profile as profile_module
from edgekd.profiling.remote.address import Address
from edgekd.profiling.remote.profile import BoardProfile, profile_on_board
from edgekd.profiling.remote.request import BoardPlan, Candidate
from edgekd.profiling.remote.ssh import Ssh
from tests.profiling.remote.conftest import candidate, engine

PLAN = BoardPlan()


class Board:
    """Has some runtimes and no files; keeps what is pushed."""

    has: tuple[str, ...] = ()
    pushed: dict[str, Path] = {}  # noqa: RUF012 - of the test that runs

    def __init__(self, ssh: Ssh, python: str) -> None:
        self.name, self.python = "ssh://toy", python

    def hello(self, *digests: str) -> dict[str, Any]:
        offers = {n: {"ok": n in self.has, "version": "1", "install": f"get {n}"} for n in ADAPTERS}
        return {"runtimes": offers, "missing": list(digests)}

    def push(self, files: Mapping[str, Path], reporter: Reporter) -> None:
        Board.pushed = dict(files)


class Link:
    """Runs a job at once and finds nothing; keeps its engines."""

    engines: list[dict[str, Any]] = []  # noqa: RUF012 - of the test that runs

    def __init__(self, *_: Any) -> None:
        return

    def result_of(self, job_id: str, spec: dict[str, Any]) -> dict[str, Any]:
        Link.engines = spec["engines"]
        return {"entries": []}


def profiled(
    monkeypatch: pytest.MonkeyPatch, has: tuple[str, ...], candidates: list[Candidate], **more: Any
) -> BoardProfile:
    report = ProfileReport(device="toy", measured=True, threads=(1,), entries=(), board="b")
    monkeypatch.setattr(Board, "has", has)
    monkeypatch.setattr(profile_module, "Board", Board)
    monkeypatch.setattr(profile_module, "Link", Link)
    monkeypatch.setattr(profile_module, "report_from_result", lambda *_, **__: (report, ["It was cold."]))
    return profile_on_board(Ssh(Address("toy")), candidates, PLAN, reporter=RecordingReporter(), **more)


def test_all_files_of_an_engine_go_to_the_board_and_the_one_that_is_opened_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = engine(tmp_path, "small", "ncnn", ("model.param", "model.bin"))
    profiled(monkeypatch, ("ncnn",), [made])
    assert {path.read_text() for path in Board.pushed.values()} == {"small: model.param", "small: model.bin"}
    ((asked,),) = [Link.engines]
    assert [made.files[digest].read_text() for digest in asked["files"]] == ["small: model.param", "small: model.bin"]
    assert made.size_mib == pytest.approx(len("small: model.param" + "small: model.bin") / 2**20)


def test_engines_of_a_runtime_that_the_board_lacks_are_left_out_with_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [candidate(tmp_path, "graph"), engine(tmp_path, "other", "litert", ("model.tflite",))]
    found = profiled(monkeypatch, ("onnxruntime", "ncnn"), made, name="orin-1")
    assert [asked["label"] for asked in Link.engines] == ["graph@onnxruntime, 1 threads"]
    assert len(Board.pushed) == 1
    assert found.decisions == ("It was cold.", "other is not measured: litert is not on orin-1 (ssh toy get litert).")


def test_a_runtime_that_would_not_take_the_form_either_is_not_advised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT reads graphs, but not this form of INT8: only ONNX Runtime is worth installing."""
    made = candidate(tmp_path, "int8")
    tags = {"precision": "int8", "scheme": "ort-u8s8"}
    int8 = Candidate(name="int8", bundle=made.bundle.model_copy(update={"tags": tags}), files=made.files)
    both = [engine(tmp_path, "small", "ncnn", ("model.param", "model.bin")), int8]
    assert profiled(monkeypatch, ("ncnn",), both, among=("tensorrt", "onnxruntime")).decisions[-1] == (
        "int8 is not measured: onnxruntime is not on ssh://toy (ssh toy get onnxruntime)."
    )
    assert profiled(monkeypatch, ("ncnn",), both, among=("tensorrt",)).decisions[-1] == (
        "int8 is not measured: ncnn on ssh://toy do not run an onnx bundle of this form."
    )


def test_without_anything_to_measure_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = engine(tmp_path, "other", "executorch", ("model.pte",))
    with pytest.raises(DeviceUnavailable, match="executorch is not installed for python3, and what it has") as caught:
        profiled(monkeypatch, ("onnxruntime",), [made])
    assert caught.value.hint == "ssh toy get executorch"
