from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.events import RecordingReporter
from edgekd.core.graph import Graph
from edgekd.core.plan import Action, RunReport
from edgekd.core.runner import Runner, RunSettings
from edgekd.core.store import LocalStore
from edgekd.errors import BuildFailed, DeviceUnavailable, EdgekdError, UserError
from tests.core.fakes import STAGES, Append, FakeData, blob_text, chain, graph, ran

QUIET = RunSettings()


def run(runner: Runner, of: Graph, **settings: Any) -> RunReport:
    return runner.run(of, {}, RunSettings(**settings))


def actions(report: RunReport) -> dict[str, str]:
    return {node.name: str(node.action) for node in report.nodes}


def failing(how: str, *before: str) -> Graph:
    """`append` nodes, then one that fails."""
    nodes = [node.plain() for node in chain(*before).nodes]
    after = {"model": nodes[-1]["name"]} if nodes else {}
    return graph(*nodes, {"name": "bad", "stage": "fail", "config": {"how": how}, "inputs": after})


def test_a_chain_runs_in_order_and_the_second_time_not_at_all(runner: Runner, root: Path) -> None:
    first = run(runner, chain("a", "b", "c"))
    assert ran == ["a", "b", "c"]
    assert blob_text(root, first.bundle("n2")) == "abc"
    assert first.node("n1").metrics == {"length": 1, "resumed": False}
    assert first.node("n1").decisions == ("appended",)
    second = run(runner, chain("a", "b", "c"))
    assert ran == ["a", "b", "c"]
    assert actions(second) == {"n0": "reuse", "n1": "reuse", "n2": "reuse"}
    for before, after in zip(first.nodes, second.nodes, strict=True):
        assert after == before.model_copy(update={"action": Action.REUSE, "reasons": ("nothing changed",)})


def test_a_change_runs_its_node_and_what_depends_on_it(runner: Runner, root: Path) -> None:
    run(runner, chain("a", "b", "c"))
    report = run(runner, chain("a", "x", "c"))
    assert actions(report) == {"n0": "reuse", "n1": "run", "n2": "run"}
    assert blob_text(root, report.bundle("n2")) == "axc"


def test_a_result_that_stays_the_same_leaves_everything_after_it_alone(runner: Runner) -> None:
    def through_first(letters: str) -> Graph:
        return graph(
            {"name": "a", "stage": "append", "config": {"letters": letters}},
            {"name": "f", "stage": "first", "inputs": {"model": "a"}},
            {"name": "z", "stage": "append", "inputs": {"model": "f"}},
        )

    run(runner, through_first("abc"))
    assert actions(run(runner, through_first("axy"))) == {"a": "run", "f": "run", "z": "reuse"}


def test_an_earlier_result_is_found_again(runner: Runner) -> None:
    run(runner, chain("a"))
    run(runner, chain("b"))
    assert actions(run(runner, chain("a"))) == {"n0": "reuse"}


def test_renaming_a_node_makes_nothing_run_again(runner: Runner) -> None:
    run(runner, chain("a", "b"))
    renamed = graph(
        {"name": "x", "stage": "append", "config": {"letters": "a"}},
        {"name": "y", "stage": "append", "config": {"letters": "b"}, "inputs": {"model": "x"}},
    )
    assert actions(run(runner, renamed)) == {"x": "reuse", "y": "reuse"}


def test_a_measurement_is_made_anew_each_time_and_sees_its_candidates_by_name(runner: Runner, root: Path) -> None:
    measured = graph(
        {"name": "b", "stage": "append", "config": {"letters": "y"}},
        {"name": "a", "stage": "append", "config": {"letters": "x"}},
        {"name": "m", "stage": "measure", "inputs": {"candidates": ["a", "b"]}},
    )
    assert blob_text(root, run(runner, measured).bundle("m")) == "a=x b=y"
    again = run(runner, measured)
    assert actions(again) == {"b": "reuse", "a": "reuse", "m": "run"}
    assert again.node("m").reasons == ("not cacheable (a measurement)",)
    assert ran.count("measure") == 2
    assert not any("measure" in file.read_text() for file in (root / "records").rglob("*.json"))


def test_a_stage_sees_only_the_resources_it_declares_and_their_digests_are_in_its_key(
    runner: Runner, root: Path
) -> None:
    reads = graph({"name": "r", "stage": "reads"}, {"name": "a", "stage": "append"})
    resources = {"data": FakeData("one"), "target": FakeData("jetson")}
    report = run(runner, reads, resources=resources, seed=3)
    assert blob_text(root, report.bundle("r")) == "['data'] 3 dict_keys([])"
    other_target = run(runner, reads, resources={**resources, "target": FakeData("pi")}, seed=3)
    assert actions(other_target) == {"r": "reuse", "a": "reuse"}
    other_data = run(runner, reads, resources={**resources, "data": FakeData("two")}, seed=3)
    assert actions(other_data) == {"r": "run", "a": "reuse"}
    assert other_data.node("r").reasons == ("resource data changed",)


def test_a_missing_resource_is_found_before_any_work(runner: Runner) -> None:
    both = graph({"name": "a", "stage": "append"}, {"name": "r", "stage": "reads"})
    with pytest.raises(UserError, match=r"Node 'r' \(stage 'reads'\) reads the resource 'data'.* \(it has: none\)"):
        run(runner, both)
    assert ran == []


def test_the_seed_is_part_of_every_key(runner: Runner) -> None:
    run(runner, chain("a"))
    report = run(runner, chain("a"), seed=1)
    assert report.node("n0").reasons == ("seed 0 -> 1",)


def test_a_new_version_of_a_stage_runs_again(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    run(runner, chain("a"))
    monkeypatch.setattr(Append, "version", 2)
    assert run(runner, chain("a")).node("n0").reasons == ("stage version 1 -> 2",)


def test_bundles_come_in_as_inputs_of_the_graph(runner: Runner, store: LocalStore, root: Path, tmp_path: Path) -> None:
    (tmp_path / "t").write_text("teacher")
    teacher = ModelBundle(kind=BundleKind.TORCH, files={"model.txt": store.blobs.add(tmp_path / "t")})
    fed = graph({"name": "a", "stage": "append", "inputs": {"model": "@teacher"}}, inputs={"teacher": "torch"})
    assert blob_text(root, runner.run(fed, {"teacher": teacher}, QUIET).bundle("a")) == "teachera"
    measured = graph(
        {"name": "m", "stage": "measure", "inputs": {"candidates": ["@teacher"]}}, inputs={"teacher": "torch"}
    )
    assert blob_text(root, runner.run(measured, {"teacher": teacher}, QUIET).bundle("m")) == "teacher=teacher"
    with pytest.raises(UserError, match=r"input 'teacher' \(torch\) was not given"):
        runner.run(fed, {}, QUIET)
    with pytest.raises(UserError, match=r"no input 'teachr'. Did you mean 'teacher'\?"):
        runner.run(fed, {"teacher": teacher, "teachr": teacher}, QUIET)
    with pytest.raises(UserError, match="takes torch, got a onnx bundle"):
        runner.run(fed, {"teacher": teacher.model_copy(update={"kind": BundleKind.ONNX})}, QUIET)


def test_rebuild_runs_known_nodes_from_the_start(runner: Runner, store: LocalStore) -> None:
    report = run(runner, chain("a", "b", "c"))
    leftover = store.scratch(report.node("n1").key)
    leftover.mkdir(parents=True)
    (leftover / "checkpoint").touch()
    rebuilt = run(runner, chain("a", "b", "c"), rebuild=frozenset({"n1"}))
    assert actions(rebuilt) == {"n0": "reuse", "n1": "run", "n2": "reuse"}
    assert rebuilt.node("n1").reasons == ("rebuild asked for",)
    assert rebuilt.node("n1").metrics["resumed"] is False
    assert actions(run(runner, chain("a", "b", "c"), rebuild=frozenset({"all"}))) == dict.fromkeys(
        ["n0", "n1", "n2"], "run"
    )
    with pytest.raises(UserError, match=r"Cannot rebuild 'n-1': no such node. Did you mean 'n1'\?"):
        run(runner, chain("a", "b", "c"), rebuild=frozenset({"n-1"}))


def test_what_cannot_work_is_said_before_any_work(runner: Runner) -> None:
    first = graph({"name": "a", "stage": "append"}, {"name": "bad", "stage": "fail", "config": {"how": "requires"}})
    reporter = RecordingReporter()
    with pytest.raises(DeviceUnavailable):
        run(runner, first, reporter=reporter)
    assert ran == []
    assert [(e["name"], e["state"]) for e in reporter.events] == [("bad", "failed")]


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ("error", BuildFailed, "The build failed"),
        ("ensures", BuildFailed, "promise was broken"),
        ("bug", ZeroDivisionError, "division"),
        ("wrong kind", EdgekdError, "Stage 'fail' declares to make torch, and made onnx"),
        ("no file", EdgekdError, "returned the file 'x' without adding it"),
        ("nan", EdgekdError, "metrics that are not finite"),
    ],
)
def test_a_failure_is_reported_never_kept_and_leaves_its_scratch(
    runner: Runner, store: LocalStore, how: str, error: type[Exception], words: str
) -> None:
    reporter = RecordingReporter()
    for attempt in (1, 2):
        with pytest.raises(error, match=words) as caught:
            run(runner, failing(how, "a"), reporter=reporter)
        assert caught.value.__notes__ == ["in node 'bad' (stage 'fail')"]
        assert ran.count("fail") == attempt
    assert ran.count("a") == 1
    assert [(e["name"], e["state"]) for e in reporter.events if e["event"] == "node"] == [
        ("n0", "start"), ("n0", "done"), ("bad", "start"), ("bad", "failed"),
        ("n0", "reused"), ("bad", "start"), ("bad", "failed"),
    ]  # fmt: skip
    key = runner.plan(failing(how, "a"), {}, QUIET).decision("bad").key
    assert key is not None
    assert (store.scratch(key) / "checkpoint").read_text() == "half done"
    assert store.last("bad") is None
    assert store.holder() is None


def test_a_finished_node_leaves_no_scratch(runner: Runner, store: LocalStore, root: Path) -> None:
    report = run(runner, chain("a", "b"))
    assert list((root / "scratch").iterdir()) == []
    store.scratch(report.node("n0").key).mkdir()  # as after a kill between keeping the result and clearing up
    run(runner, chain("a", "b"))
    assert list((root / "scratch").iterdir()) == []


def test_a_full_disk_loses_nothing_that_was_finished(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    run(runner, chain("a"))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="No space left on the disk"):
            run(runner, chain("a", "b"))
    assert actions(run(runner, chain("a", "b"))) == {"n0": "reuse", "n1": "run"}


def test_a_damaged_record_is_made_again_and_the_reason_is_given(runner: Runner, root: Path) -> None:
    before = run(runner, chain("a", "b"))
    for file in (root / "records").rglob("*.json"):
        file.write_text("{")
    report = run(runner, chain("a", "b"))
    assert actions(report) == {"n0": "run", "n1": "run"}
    assert "is not valid JSON" in report.node("n0").reasons[0]
    assert report.bundle("n1") == before.bundle("n1")
    assert actions(run(runner, chain("a", "b"))) == {"n0": "reuse", "n1": "reuse"}


def test_a_lost_or_damaged_file_is_made_again(runner: Runner, store: LocalStore) -> None:
    report = run(runner, chain("a", "b"))
    store.blobs.path(report.bundle("n0").file("model.txt")).unlink()
    damaged = store.blobs.path(report.bundle("n1").file("model.txt"))
    damaged.chmod(0o644)
    damaged.write_text("zz")
    again = run(runner, chain("a", "b"))
    assert "is lost" in again.node("n0").reasons[0]
    assert "is damaged" in again.node("n1").reasons[0]
    assert damaged.read_text() == "ab"


def test_one_run_at_a_time(runner: Runner, store: LocalStore) -> None:
    with store.lock(), pytest.raises(UserError, match="in use"):
        run(runner, chain("a"))
    assert ran == []


def test_a_report_survives_json(runner: Runner) -> None:
    report = run(runner, chain("a", "b"))
    assert RunReport.from_json(report.to_json()) == report
    with pytest.raises(UserError, match="run report: not valid JSON"):
        RunReport.from_json("{")
    with pytest.raises(UserError, match=r"No node 'n-1' here. Did you mean 'n1'\?"):
        report.node("n-1")


def test_one_registry_serves_every_runner(store: LocalStore) -> None:
    run(Runner(STAGES, store), chain("a"))
    assert actions(run(Runner(STAGES, store), chain("a"))) == {"n0": "reuse"}
