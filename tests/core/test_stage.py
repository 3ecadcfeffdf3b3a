from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.events import RecordingReporter, Reporter, SilentReporter
from edgekd.core.stage import Inputs, Stage, StageConfig, StageResult, port
from edgekd.errors import EdgekdError
from edgekd.testing.harness import make_context, make_inputs, run_stage
from tests.core.fakes import Append, Fail, FailConfig, FakeData, Letters, Measure

MODEL = ModelBundle(kind=BundleKind.TORCH)
OTHER = ModelBundle(kind=BundleKind.TORCH, tags={"other": True})


def test_inputs_are_read_by_port() -> None:
    inputs = Inputs({"model": [("model", MODEL)], "candidates": [("a", MODEL), ("b", OTHER)]})
    assert inputs.one("model") is MODEL
    assert inputs.maybe("teacher") is None
    assert [name for name, _ in inputs.all("candidates")] == ["a", "b"]
    assert inputs.all("teacher") == ()
    with pytest.raises(EdgekdError, match="Port 'teacher' is empty"):
        inputs.one("teacher")


def test_the_harness_names_inputs_as_the_runner_does() -> None:
    inputs = make_inputs(model=MODEL, candidates=[("a", MODEL), ("b", OTHER)])
    assert inputs == Inputs({"model": [("model", MODEL)], "candidates": [("a", MODEL), ("b", OTHER)]})


def test_a_resource_must_be_declared_and_of_its_kind(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, resources={"data": FakeData()})
    assert ctx.resource("data", FakeData).content == "digits"
    with pytest.raises(EdgekdError, match=r"Resource 'target' \(FakeData\) is not declared"):
        ctx.resource("target", FakeData)


def test_names_reach_a_stage_at_named_ports_and_ports_for_many() -> None:
    assert port(BundleKind.TORCH, many=True).shows_names
    assert port(BundleKind.TORCH, named=True).shows_names
    assert not port(BundleKind.TORCH, optional=True).shows_names


def test_a_stage_may_give_one_kind_or_one_of_several() -> None:
    class Choose(Stage[StageConfig]):
        produces = frozenset({BundleKind.ONNX, BundleKind.ENGINE})

        def run(self, inputs: Inputs, ctx: object) -> StageResult:
            raise NotImplementedError

    assert Append.output_kinds() == {BundleKind.TORCH}
    assert Choose.output_kinds() == {BundleKind.ONNX, BundleKind.ENGINE}


def test_the_harness_runs_a_stage_as_the_runner_does(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    made = run_stage(Append(Letters(letters="ab")), make_inputs(), ctx)
    measured = run_stage(Measure(StageConfig()), make_inputs(candidates=[("x", made.bundle)]), ctx)
    assert ctx.path(measured.bundle, "model.txt").read_text() == "x=ab"
    with pytest.raises(EdgekdError, match="promise was broken"):
        run_stage(Fail(FailConfig(how="ensures")), make_inputs(), ctx)


def test_reporters_take_every_event() -> None:
    recording = RecordingReporter()
    reporters: list[Reporter] = [recording, SilentReporter()]
    for reporter in reporters:
        assert isinstance(reporter, Reporter)
        reporter.message("hello", level="warning")
        reporter.node("prune", "done", "1.0 s")
        reporter.progress("epoch", 1, 2, {"loss": 0.5})
    assert recording.events == [
        {"event": "message", "level": "warning", "text": "hello"},
        {"event": "node", "name": "prune", "state": "done", "detail": "1.0 s"},
        {"event": "progress", "task": "epoch", "done": 1, "total": 2, "loss": 0.5},
    ]
