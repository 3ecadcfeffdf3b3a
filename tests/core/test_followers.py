from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from edgekd.core.graph import Graph
from edgekd.core.lock import Holder
from edgekd.core.plan import RunReport
from edgekd.core.runner import Role, Runner, RunSettings
from edgekd.core.store import LocalStore, Store
from edgekd.errors import EdgekdError
from tests.core import fakes
from tests.core.fakes import STAGES, FakeData, graph, ran

QUIET = RunSettings()


def joint_graph(letters: str = "j", *, before: str = "a") -> Graph:
    """A measurement and a stage for the leader alone, then a joint one, then one more for the leader alone."""
    return graph(
        {"name": "a", "stage": "append", "config": {"letters": before}},
        {"name": "m", "stage": "measure", "inputs": {"candidates": ["a"]}},
        {"name": "j", "stage": "joint", "config": {"letters": letters}, "inputs": {"model": "a"}},
        {"name": "z", "stage": "append", "config": {"letters": "z"}, "inputs": {"model": "j"}},
    )


def runner(store: Store, role: Role, patience_s: float = 10) -> Runner:
    return Runner(STAGES, store, role=role, poll_s=0.005, patience_s=patience_s)


class WatchedStore(LocalStore):
    """Says when its user has seen that a run holds it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.seen = threading.Event()

    def holder(self) -> Holder | None:
        found = super().holder()
        if found is not None:
            self.seen.set()
        return found


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def both(
    threads: ThreadPoolExecutor, store: LocalStore, of: Graph, settings: RunSettings = QUIET
) -> tuple[RunReport, RunReport]:
    """What a leader and a follower report."""
    fakes.ranks[:] = [threading.Barrier(2)]
    follower = threads.submit(runner(LocalStore(store.root), "follower").run, of, {}, settings)
    leader = threads.submit(runner(store, "leader").run, of, {}, settings)
    return leader.result(timeout=20), follower.result(timeout=20)


def test_a_follower_runs_only_what_is_joint_and_takes_the_rest_from_the_leader(
    threads: ThreadPoolExecutor, store: LocalStore
) -> None:
    leader, follower = both(threads, store, joint_graph())
    assert sorted(ran) == ["a", "joint j", "joint j", "measure", "z"]
    assert [(node.name, str(node.action)) for node in follower.nodes] == [("a", "reuse"), ("m", "reuse"), ("j", "run")]
    assert [node.bundle for node in follower.nodes] == [node.bundle for node in leader.nodes[:3]]


def test_what_the_leader_reuses_nobody_runs_and_a_late_follower_does_not_wait_for_it(
    threads: ThreadPoolExecutor, store: LocalStore
) -> None:
    both(threads, store, joint_graph())
    ran.clear()
    assert runner(store, "follower").run(joint_graph(), {}, QUIET).nodes == ()
    assert ran == []


def test_a_follower_takes_a_joint_result_that_turns_out_to_be_known(
    threads: ThreadPoolExecutor, store: LocalStore
) -> None:
    nodes = [node.plain() for node in joint_graph().nodes]

    def through_first(letters: str) -> Graph:
        first = {"name": "f", "stage": "first", "inputs": {"model": "a"}}
        joint = {**nodes[2], "inputs": {"model": "f"}}
        return graph({**nodes[0], "config": {"letters": letters}}, first, joint)

    both(threads, store, through_first("ab"))
    ran.clear()
    waiting = WatchedStore(store.root)
    with store.lock() as holder:
        follower = threads.submit(runner(waiting, "follower").run, through_first("ac"), {}, QUIET)
        assert waiting.seen.wait(timeout=10)
        leading = runner(LocalStore(store.root.parent / "aside"), "leader")
        fakes.ranks.clear()
        leading.run(through_first("ac"), {}, QUIET)
        for name in ("a", "f", "j"):
            record = leading.store.last(name)
            assert record is not None
            store.note(record.model_copy(update={"run": holder.run}))
        report = follower.result(timeout=20)
    assert [str(node.action) for node in report.nodes] == ["reuse", "reuse", "reuse"]


def test_a_rebuild_is_joint_although_the_result_is_known(threads: ThreadPoolExecutor, store: LocalStore) -> None:
    first, _ = both(threads, store, joint_graph())
    ran.clear()
    again, follower = both(threads, store, joint_graph(), RunSettings(rebuild=frozenset({"all"})))
    assert sorted(ran) == ["a", "joint j", "joint j", "measure", "z"]
    assert follower.node("j").finished == again.node("j").finished > first.node("j").finished


def test_a_graph_without_joint_stages_lets_a_follower_go_at_once(store: LocalStore) -> None:
    assert runner(store, "follower").run(fakes.chain("a"), {}, QUIET).nodes == ()


def test_a_follower_does_not_wait_for_ever_for_a_leader_that_never_begins(store: LocalStore) -> None:
    with pytest.raises(EdgekdError, match=r"The leader did not begin within 0\.05 s"):
        runner(store, "follower", patience_s=0.05).run(joint_graph(), {}, QUIET)


def test_a_follower_ends_with_an_error_when_its_leader_does(threads: ThreadPoolExecutor, store: LocalStore) -> None:
    watched = WatchedStore(store.root)
    with store.lock():
        follower = threads.submit(runner(watched, "follower").run, joint_graph(), {}, QUIET)
        assert watched.seen.wait(timeout=10)
    with pytest.raises(EdgekdError, match="The leader ended without a result for node 'a'"):
        follower.result(timeout=20)


def test_ranks_that_see_different_data_are_told_apart(threads: ThreadPoolExecutor, store: LocalStore) -> None:
    of = graph({"name": "r", "stage": "reads"}, {"name": "j", "stage": "joint", "inputs": {"model": "r"}})
    follower: Future[RunReport] = threads.submit(
        runner(LocalStore(store.root), "follower").run, of, {}, RunSettings(resources={"data": FakeData("mine")})
    )
    with store.lock() as holder:
        leading = runner(LocalStore(store.root.parent / "aside"), "leader")
        report = leading.run(of, {}, RunSettings(resources={"data": FakeData("other")}))
        record = leading.store.last("r")
        assert record is not None
        assert record.bundle == report.bundle("r")
        store.note(record.model_copy(update={"run": holder.run}))
        with pytest.raises(EdgekdError, match="This rank and the leader differ at node 'r': resource data changed"):
            follower.result(timeout=20)
