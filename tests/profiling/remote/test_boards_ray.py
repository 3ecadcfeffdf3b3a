"""Boards that are reached from the machines of a Ray cluster; what needs one runs on a real one, with a real sshd."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import edgekd
from edgekd.cli.app import exit_code_of
from edgekd.core.events import RecordingReporter
from edgekd.errors import DeviceUnavailable, EdgekdError, UserError
from edgekd.profiling.remote import boards_ray
from edgekd.profiling.remote.boards_ray import _public_class, check_cluster, profile_on_cluster
from edgekd.profiling.remote.failures import ConnectionFailed
from edgekd.profiling.remote.lab import Lab, LabBoard
from edgekd.profiling.remote.profile import BoardProfile
from edgekd.profiling.remote.request import BoardPlan, Candidate
from tests.profiling.remote.conftest import candidate, engine
from tests.profiling.remote.loopback import LoopbackBoard, start_board

ROOT = Path(__file__).parents[3]
WITH_RAY = [
    pytest.mark.slow,
    pytest.mark.needs("sshd"),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray: pip install 'edgekd[ray]'"),
]
QUICK = BoardPlan(runtimes=("onnxruntime",), warmup_s=0.0, duration_s=0.05, stall_s=60)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4", "--workers '4': boards are reached from this machine, or from those of a Ray cluster"),
        ("ray://head", r"A Ray cluster is ray://HOST:PORT"),
    ],
)
def test_what_is_no_cluster_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_cluster(text)


def test_workers_are_for_a_lab(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(["profile", "x.onnx", "--device", "ssh://a", "--workers", "ray://local"]) == 2
    assert "--workers reaches the boards of a lab file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("err", "name"),
    [
        (ConnectionFailed("dropped", "gone"), "DeviceUnavailable"),
        (UserError("wrong"), "UserError"),
        (EdgekdError("odd"), "EdgekdError"),
    ],
)
def test_an_error_travels_as_the_nearest_public_class(err: EdgekdError, name: str) -> None:
    assert _public_class(err) == name


def test_all_files_of_an_engine_are_there_on_the_machine_that_reaches_the_board(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = engine(tmp_path, "small", "ncnn", ("model.param", "model.bin"))
    contents = {digest: path.read_bytes() for digest, path in made.files.items()}
    seen: dict[str, bytes] = {}

    def outcome(name: str, board: LabBoard, candidates: list[Candidate], *_: Any) -> UserError:
        (found,) = candidates
        assert list(found.files) == list(made.files)  # the one that is opened comes first
        assert not set(found.files.values()) & set(made.files.values())
        seen.update({digest: path.read_bytes() for digest, path in found.files.items()})
        return UserError("seen")

    monkeypatch.setattr(boards_ray, "board_outcome", outcome)
    util = SimpleNamespace(get_node_ip_address=lambda: "10.0.0.1")
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(util=util, get=lambda value: value))
    said, (kind, message, _) = boards_ray._reach(
        edgekd.__version__, "pi", LabBoard(address="ssh://pi"), [[(made, contents)]], QUICK
    )
    assert (said, kind, message) == (["pi: reached from 10.0.0.1"], "UserError", "seen")
    assert seen == contents


class Lost(Exception):
    """A machine that has gone."""


class FakeRay:
    """Work that is done when it is asked for; the first answers of a board may be losses."""

    exceptions = SimpleNamespace(RayError=RuntimeError)

    def __init__(self, losses: dict[str, int]) -> None:
        self.losses = losses
        self.asked: list[tuple[str, dict[str, float]]] = []
        self.at_once = 0

    def put(self, value: Any) -> Any:
        return value

    def cluster_resources(self) -> dict[str, float]:
        return {"bench-a": 1.0}

    def remote(self, **settings: Any) -> Any:
        assert settings == {"num_cpus": 0, "max_retries": 0}
        return lambda function: SimpleNamespace(options=self._options)

    def _options(self, resources: dict[str, float]) -> Any:
        def start(version: str, name: str, *_: Any) -> str:
            self.asked.append((name, resources))
            return f"{name} {len(self.asked)}"

        return SimpleNamespace(remote=start)

    def wait(self, tasks: list[str], num_returns: int) -> tuple[list[str], list[str]]:
        self.at_once = max(self.at_once, len(tasks))
        return tasks[:1], tasks[1:]

    def get(self, task: str) -> tuple[list[str], Any]:
        name = task.split()[0]
        if self.losses.get(name, 0) > 0:
            self.losses[name] -= 1
            raise Lost("the node died")
        return [f"{name}: reached from here"], ("DeviceUnavailable", f"{name} is off", "switch it on")


def on_fake_ray(
    ray: FakeRay, boards: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Any], RecordingReporter]:
    connection = SimpleNamespace(ray=ray, close=lambda: None, losses=lambda: (Lost,))
    monkeypatch.setattr("edgekd.profiling.remote.boards_ray.RayConnection", lambda address, cores: connection)
    lab, reporter = Lab.parse({"boards": boards}, "lab"), RecordingReporter()
    return profile_on_cluster(lab.boards, [], QUICK, address="auto", concurrency=2, reporter=reporter), reporter


def test_work_that_lost_its_machine_is_begun_once_more_and_then_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay({"once": 1, "twice": 2})
    boards = {name: {"address": "ssh://x"} for name in ("fine", "once", "twice")}
    found, reporter = on_fake_ray(ray, boards, monkeypatch)
    assert {name: err.message for name, err in found.items()} == {
        "fine": "fine is off",
        "once": "once is off",
        "twice": "twice: it lost the machine of the cluster that reached it 2 times.",
    }
    assert sorted(name for name, _ in ray.asked) == ["fine", "once", "once", "twice", "twice"]
    assert ray.at_once == 2
    told = [str(event["text"]) for event in reporter.events if event["event"] == "message"]
    assert sum("was lost (the node died)" in text for text in told) == 3


def test_a_board_with_a_resource_goes_to_a_machine_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay({})
    near, far = {"address": "ssh://x", "resource": "bench-a"}, {"address": "ssh://x", "resource": "bench-z"}
    found, _ = on_fake_ray(ray, {"near": near, "far": far}, monkeypatch)
    assert ray.asked == [("near", {"bench-a": 0.001})]
    assert "no machine of the cluster has the resource 'bench-z'" in found["far"].message
    assert found["far"].exit_code == 3


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackBoard]:
    started = start_board(tmp_path_factory.mktemp("ray") / "board")
    try:
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def cluster(board: LoopbackBoard) -> Iterator[Any]:
    """Two machines; the second one is near the boards of bench A, and both have the client that reaches our board."""
    import ray
    from ray.cluster_utils import Cluster

    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": board.client_path}
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    settings = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    started = Cluster(initialize_head=True, head_node_args={**settings, "include_dashboard": False})
    started.add_node(**settings, resources={"bench-a": 1})
    started.wait_for_nodes()
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

    def test_each_board_is_reached_from_a_machine_near_it_and_a_failed_one_has_its_reason(
        self, cluster: Any, tmp_path: Path
    ) -> None:
        lab = Lab.parse(
            {
                "boards": {
                    "near": {"address": "ssh://board", "resource": "bench-a"},
                    "anywhere": {"address": "ssh://board"},
                    "dead": {"address": "ssh://127.0.0.1:1"},
                    "nowhere": {"address": "ssh://board", "resource": "bench-z"},
                }
            },
            "lab",
        )
        reporter = RecordingReporter()
        measured: list[Candidate] = [candidate(tmp_path, "small")]
        found = profile_on_cluster(lab.boards, measured, QUICK, address="auto", concurrency=2, reporter=reporter)
        assert list(found) == ["near", "anywhere", "dead", "nowhere"]
        for name in ("near", "anywhere"):
            outcome = found[name]
            assert isinstance(outcome, BoardProfile), outcome
            assert outcome.report.board == name
            assert outcome.report.entries[0].latency is not None
        dead, nowhere = found["dead"], found["nowhere"]
        assert isinstance(dead, DeviceUnavailable)
        assert "nothing listens for ssh" in dead.message
        assert isinstance(nowhere, DeviceUnavailable)
        assert "no machine of the cluster has the resource 'bench-z'" in nowhere.message
        told = [str(event.get("text")) for event in reporter.events]
        assert sum("reached from" in text for text in told) == 3
