from __future__ import annotations

import importlib.util
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from edgekd.errors import DeviceUnavailable, EdgekdError, UserError
from edgekd.search.workers import LocalWorker
from edgekd.search.workers.choice import check_workers
from edgekd.search.workers.ray import ATTEMPTS, RayWorkers
from tests.search.scoring_toys import factory, student, toy_spec

ROOT = Path(__file__).parents[2]
WITH_RAY = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray: pip install 'edgekd[ray]'"),
]


def test_without_ray_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="which is not installed") as raised:
        check_workers("ray://local")
    assert raised.value.hint == "pip install 'edgekd[ray]'"


@pytest.mark.parametrize("text", ["ray://", "ray://head", "ray://head:", "ray://:10001", "ray://head:ten"])
def test_what_is_no_cluster_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(UserError, match=r"ray://HOST:PORT, ray://auto or ray://local"):
        check_workers(text)


def test_a_cluster_that_does_not_answer_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(DeviceUnavailable, match=f"No Ray cluster answers at ray://127.0.0.1:{port}"):
        RayWorkers(toy_spec(), address=f"127.0.0.1:{port}")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """The head of a cluster, with one core, and a connection to it."""
    import ray
    from ray.cluster_utils import Cluster

    settings = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    # The nodes import the tests' builders, and no thread pool of theirs is larger than its core.
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    started = Cluster(initialize_head=True, head_node_args=settings)
    ray.init(address=started.address, log_to_driver=False)
    try:
        yield started
    finally:
        ray.shutdown()
        started.shutdown()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


class TestOnACluster:
    pytestmark = WITH_RAY

    def test_candidates_of_a_machine_that_dies_are_scored_elsewhere_and_each_is_told_once(
        self, cluster: Any, tmp_path: Path
    ) -> None:
        doomed = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
        cluster.wait_for_nodes()
        started = tmp_path / "started"
        slow = [factory("sleeper", started=str(started), seconds=0.7) for _ in range(6)]
        with closing(RayWorkers(toy_spec(), address="auto")) as workers:
            assert workers.width == 2
            killer = threading.Thread(target=_kill_when_both_work, args=(cluster, doomed, started))
            killer.start()
            scores = workers.scores([student(1), *slow, student(2), student(3)])
            killer.join()
        here = LocalWorker(toy_spec().scorer()).scores([student(1), student(2), student(3)])
        assert [scores[0], *scores[7:]] == here
        assert len({score.values for score in scores[1:7]}) == 1
        assert all(score.skipped is None for score in scores)
        # Two seeds build each candidate twice; the one that was on the machine began once more.
        assert len(started.read_text().splitlines()) in (2 * len(slow) + 1, 2 * len(slow) + 2)

    def test_a_candidate_that_ends_every_worker_is_skipped_with_the_reason(self, cluster: Any) -> None:
        with closing(RayWorkers(toy_spec(), address="auto")) as workers:
            killed, alive = workers.scores([factory("killer"), student(1)])
        assert killed.skipped is not None
        assert killed.skipped.startswith(f"It lost its worker {ATTEMPTS} times, probably out of memory: ")
        assert [alive] == LocalWorker(toy_spec().scorer()).scores([student(1)])

    def test_an_error_of_a_candidate_is_raised_here(self, cluster: Any) -> None:
        with closing(RayWorkers(toy_spec(), address="auto")) as workers:
            with pytest.raises(EdgekdError, match="no such layer"):
                workers.scores([factory("broken")])
            with pytest.raises(UserError, match="does not take the arguments"):
                workers.scores([factory("killer", wrong=1)])


def _kill_when_both_work(cluster: Any, doomed: Any, started: Path) -> None:
    deadline = time.monotonic() + 60
    while not started.exists() or len(set(started.read_text().splitlines())) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    cluster.remove_node(doomed, allow_graceful=False)
