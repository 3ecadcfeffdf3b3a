"""A board in the place of a target: what it is asked before the work, and what the profile node sends there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgekd.core.events import RecordingReporter
from edgekd.core.report import ProfileReport
from edgekd.core.report_io import report_from_bundle
from edgekd.core.stage import BoardAccess
from edgekd.errors import DeviceUnavailable
from edgekd.profiling.agent.engines import ADAPTERS
from edgekd.profiling.remote import for_target
from edgekd.profiling.remote.for_target import profile_for_target, require_board
from edgekd.profiling.remote.profile import BoardProfile
from edgekd.profiling.remote.request import BoardPlan, Candidate
from edgekd.profiling.stage import ProfileConfig, ProfileStage
from edgekd.targets.load import load_target
from edgekd.targets.schema import RuntimeSupport
from edgekd.testing.harness import make_context, make_inputs, run_stage
from edgekd.testing.toy_graphs import toy_onnx_bundle
from edgekd.testing.toys import toy_bundle
from tests.gate.results import entry
from tests.profiling.cards import card

ACCESS = BoardAccess(address="ssh://toy", lock_clocks=True, name="orin-1")
MACHINE = {"cpu_model": "Toy", "board_model": None, "architecture": "aarch64"}


def toy(monkeypatch: pytest.MonkeyPatch, *runtimes: str) -> None:
    offers = {n: {"ok": n in runtimes, "version": "1", "install": f"get {n}"} for n in ADAPTERS}
    board = SimpleNamespace(
        name="ssh://toy",
        python="python3",
        ssh=SimpleNamespace(address=SimpleNamespace(command="ssh toy")),
        hello=lambda: {"machine": MACHINE, "runtimes": offers},
    )
    monkeypatch.setattr(for_target, "board_from_access", lambda access: board)


def test_a_board_offers_the_runtimes_of_the_card_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    toy(monkeypatch, "onnxruntime", "tensorrt")
    assert require_board(ACCESS, card(here=False)).runtimes == ("onnxruntime",)


@pytest.mark.parametrize(
    ("runtime", "there", "message"),
    [
        ("onnxruntime", "tensorrt", "onnxruntime cannot be used there: not installed for python3"),
        ("torch", "onnxruntime", "toy-board runs in torch; boards are measured in onnxruntime, .*litert"),
    ],
)
def test_a_board_without_a_runtime_of_the_card_is_refused(
    monkeypatch: pytest.MonkeyPatch, runtime: str, there: str, message: str
) -> None:
    toy(monkeypatch, there)
    with pytest.raises(DeviceUnavailable, match=message):
        require_board(ACCESS, card(here=False, runtime=runtime))


def test_a_board_that_is_not_the_target_is_refused_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    toy(monkeypatch, "onnxruntime")
    with pytest.raises(DeviceUnavailable, match="ssh://toy is not a raspberry-pi-5"):
        require_board(ACCESS, load_target("raspberry-pi-5"))


def test_what_of_a_card_the_board_lacks_is_told_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    toy(monkeypatch, "onnxruntime", "ncnn")
    names = ("onnxruntime", "ncnn", "litert")
    supports = tuple(RuntimeSupport(runtime=name, precisions=("fp32",)) for name in names)
    target = card(here=False).model_copy(update={"runtimes": supports})
    offer = require_board(ACCESS, target)
    assert (offer.runtimes, offer.absent) == (("onnxruntime", "ncnn"), {"litert": "ssh toy get litert"})
    among: list[Sequence[str]] = []

    def profile(ssh: object, candidates: Sequence[Candidate], plan: BoardPlan, **more: Any) -> Any:
        among.append(more["among"])
        assert plan.runtimes == ("onnxruntime", "ncnn")

    monkeypatch.setattr(for_target, "profile_on_board", profile)
    profile_for_target(ACCESS, target, [], BoardPlan(), RecordingReporter())
    assert among == [names]  # TensorRT reads graphs too, and is not on the card


def test_the_profile_node_sends_graphs_and_leaves_modules_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy(monkeypatch, "onnxruntime", "tensorrt")
    ctx = make_context(tmp_path, seed=3, resources={"target": card(here=False)})
    ctx = replace(ctx, execution=replace(ctx.execution, board=ACCESS))
    seen: list[tuple[list[str], BoardPlan, Any]] = []

    def profile(ssh: object, candidates: Sequence[Candidate], plan: BoardPlan, **more: Any) -> Any:
        seen.append(([c.name for c in candidates], plan, more["name"]))
        report = ProfileReport(
            device="toy", measured=True, threads=(2,), entries=(entry("graph", 1.0),), board=more["name"]
        )
        return BoardProfile(report=report, decisions=("clocks were fixed",), outputs={})

    monkeypatch.setattr(for_target, "profile_on_board", profile)
    inputs = make_inputs(
        candidates=[("graph", toy_onnx_bundle(ctx.blobs, ctx.scratch)), ("module", toy_bundle(ctx.blobs, ctx.scratch))]
    )
    result = run_stage(ProfileStage(ProfileConfig(threads=(2,), duration_s=0.5)), inputs, ctx)
    report = report_from_bundle(result.bundle, ProfileReport, ctx, "profile")
    assert (report.measured, report.board) == (True, "orin-1")
    ((names, plan, name),) = seen
    assert (names, name) == (["graph"], "orin-1")
    assert (plan.threads, plan.duration_s, plan.seed) == ((2,), 0.5, 3)
    assert (plan.runtimes, plan.lock_clocks) == (("onnxruntime",), True)
    assert result.decisions[:2] == (
        "Latencies were measured on orin-1; accuracies were counted on this machine.",
        "clocks were fixed",
    )
