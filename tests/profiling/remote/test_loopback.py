"""The real client, the real server and the real agent, on the loopback interface of this machine."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekd.core.events import RecordingReporter
from edgekd.errors import DeviceUnavailable
from edgekd.profiling.agent.queue import waited_for
from edgekd.profiling.remote.address import Address
from edgekd.profiling.remote.archive import agent_archive
from edgekd.profiling.remote.failures import ConnectionFailed
from edgekd.profiling.remote.profile import BoardProfile, profile_on_board
from edgekd.profiling.remote.request import BoardPlan, Candidate
from edgekd.profiling.remote.ssh import Ssh
from tests.profiling.agent.small_disk import fill, small_disk
from tests.profiling.remote.conftest import candidate
from tests.profiling.remote.loopback import LoopbackBoard

pytestmark = pytest.mark.needs("sshd")

QUICK = BoardPlan(runtimes=("onnxruntime",), warmup_s=0.0, duration_s=0.05, stall_s=60)
LONG = QUICK.model_copy(update={"duration_s": 3.0, "precision": 1e-9})
"""Never precise enough: it takes all of its time."""


def profile(
    candidates: list[Candidate],
    plan: BoardPlan = QUICK,
    *,
    reporter: RecordingReporter | None = None,
    patience_s: float = 30.0,
) -> BoardProfile:
    return profile_on_board(
        Ssh(Address("board")), candidates, plan, reporter=reporter or RecordingReporter(), patience_s=patience_s
    )


def told(reporter: RecordingReporter) -> list[str]:
    return [str(event["text"]) for event in reporter.events if event["event"] == "message"]


def until(condition: Callable[[], bool], limit_s: float = 60.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def is_running(board: LoopbackBoard) -> bool:
    """Whether the board's status file says that engines are being timed."""
    found = list(board.cache.glob("jobs/*/status.json"))
    return any(json.loads(path.read_text()).get("doing", "").startswith("measure") for path in found)


def test_bundles_are_measured_on_the_board_and_come_home_as_measurements(
    board: LoopbackBoard, candidates: list[Candidate]
) -> None:
    report = profile(candidates, QUICK.model_copy(update={"threads": (1, 2)})).report
    assert report.measured
    assert [(entry.candidate, entry.latency.threads) for entry in report.entries if entry.latency] == [
        ("small", 1),
        ("other", 1),
        ("small", 2),
        ("other", 2),
    ]
    latency = report.entries[0].latency
    assert latency is not None
    assert (latency.origin, latency.provider) == ("measured", "CPUExecutionProvider")
    assert latency.median_low_ms <= latency.p50_ms <= latency.median_high_ms
    assert latency.n == len(latency.samples_ms) > 0
    assert {"before", "after", "machine", "session", "board", "measured_at"} <= set(latency.environment)
    assert "onnxruntime" in report.device


@pytest.mark.slow
def test_the_agent_and_the_models_are_sent_once_and_the_job_is_put_aside(
    board: LoopbackBoard, candidates: list[Candidate]
) -> None:
    first, second = RecordingReporter(), RecordingReporter()
    profile(candidates, reporter=first)
    profile(candidates, reporter=second)
    assert len([text for text in told(first) if "sending 2 files" in text]) == 1
    assert [text for text in told(second) if "sending" in text] == []
    assert [path.name for path in board.cache.glob("agent-*.pyz")] == [agent_archive().name]
    assert list(board.cache.glob("jobs/*")) == []


@pytest.mark.slow
def test_outputs_on_the_board_are_those_of_this_machine(board: LoopbackBoard, candidates: list[Candidate]) -> None:
    first, second = profile(candidates[:1]).outputs, profile(candidates[:1]).outputs
    assert first == second
    assert [len(values) for values in first["small@onnxruntime, 1 threads"]] == [4]


@pytest.mark.slow
def test_a_damaged_graph_is_an_entry_with_a_reason_and_no_measurement(board: LoopbackBoard, tmp_path: Path) -> None:
    bundles = [candidate(tmp_path, "good"), candidate(tmp_path, "damaged", content=b"no graph")]
    good, damaged = profile(bundles).report.entries
    assert good.latency is not None
    assert damaged.latency is None
    assert damaged.failure is not None
    assert "cannot load the model" in damaged.failure


@pytest.mark.slow
def test_two_jobs_at_once_are_queued_and_measured_one_after_the_other(board: LoopbackBoard, tmp_path: Path) -> None:
    bundles = [candidate(tmp_path, "first")]
    profile(bundles)  # installs the agent
    reporters = [RecordingReporter(), RecordingReporter()]
    found: list[BoardProfile] = []

    def work(number: int) -> None:
        plan = QUICK.model_copy(update={"seed": number + 1, "duration_s": 0.5})
        found.append(profile(bundles, plan, reporter=reporters[number]))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    busy = waited_for(board.cache / "board.lock")  # as a third job would hold it
    for thread in threads:
        thread.start()
    until(lambda: all(any("waiting for" in text for text in told(reporter)) for reporter in reporters))
    os.close(busy)
    for thread in threads:
        thread.join(60)
    assert [profile.report.entries[0].latency is not None for profile in found] == [True, True]
    records = [json.loads(path.read_text()) for path in board.cache.glob("fetched/*/status.json")]
    times = sorted((record["started_s"], record["finished_s"]) for record in records)
    assert len(times) == 3
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(times))


def test_a_connection_that_breaks_is_taken_up_again_while_the_measurement_goes_on(
    board: LoopbackBoard, candidates: list[Candidate]
) -> None:
    reporter = RecordingReporter()
    found: list[BoardProfile] = []
    thread = threading.Thread(target=lambda: found.append(profile(candidates, LONG, reporter=reporter)))
    thread.start()
    until(lambda: is_running(board))
    assert board.kill_connections() > 0
    thread.join(60)
    assert found[0].report.entries[0].latency is not None
    assert any("Trying again" in text for text in told(reporter))


@pytest.mark.slow
def test_a_measurement_whose_connection_stayed_lost_is_fetched_by_the_same_command_later(
    board: LoopbackBoard, candidates: list[Candidate]
) -> None:
    errors: list[DeviceUnavailable] = []

    def work() -> None:
        try:
            profile(candidates, LONG, patience_s=-1.0)
        except DeviceUnavailable as err:
            errors.append(err)

    thread = threading.Thread(target=work)
    thread.start()
    until(lambda: is_running(board))
    board.kill_connections()
    thread.join(60)
    assert "goes on there without this machine" in errors[0].message
    assert errors[0].hint is not None
    assert "run the same command again" in errors[0].hint
    reporter = RecordingReporter()
    assert profile(candidates, LONG, reporter=reporter).report.entries[0].latency is not None
    assert any("has this job already" in text for text in told(reporter))


def test_a_board_without_the_runtime_is_refused_with_the_command_that_installs_it(
    board: LoopbackBoard, candidates: list[Candidate]
) -> None:
    board.set_python(f'exec {sys.executable} -S "$@"')  # without site-packages
    with pytest.raises(DeviceUnavailable, match="onnxruntime cannot be used there: not installed") as caught:
        profile(candidates)
    assert caught.value.exit_code == 3
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("ssh board ")
    assert caught.value.hint.endswith("-m pip install onnxruntime")


def test_a_board_without_python_says_so(board: LoopbackBoard, candidates: list[Candidate]) -> None:
    board.set_python(None)
    board.set_system_path("/nowhere")
    with pytest.raises(DeviceUnavailable, match="there is no python3 on the board"):
        profile(candidates)


@pytest.mark.needs("mount")
def test_a_full_disk_on_the_board_is_said_before_and_after_the_agent_is_there(
    board: LoopbackBoard, candidates: list[Candidate]
) -> None:
    with small_disk(board.home / ".cache", 8) as disk:
        with pytest.raises(DeviceUnavailable, match="no space left on the board's disk: 16 MiB are needed") as caught:
            profile(candidates)
        assert caught.value.exit_code == 3
        assert sorted(path.name for path in board.cache.iterdir()) == [agent_archive().name, "files"]
        (board.cache / agent_archive().name).unlink()
        fill(disk)
        with pytest.raises(DeviceUnavailable, match="No space left on device"):
            profile(candidates)
        assert not (board.cache / agent_archive().name).exists()


def test_a_key_that_the_board_does_not_know_is_told_apart(board: LoopbackBoard, candidates: list[Candidate]) -> None:
    shutil.copy(board.folder / "other_key", board.folder / "user_key")
    shutil.copy(board.folder / "other_key.pub", board.folder / "user_key.pub")
    with pytest.raises(ConnectionFailed, match="refused every key") as caught:
        profile(candidates)
    assert caught.value.kind == "key"
    assert "ssh-copy-id board" in str(caught.value.hint)


def test_an_unknown_host_key_is_never_accepted(board: LoopbackBoard, candidates: list[Candidate]) -> None:
    (board.folder / "known_hosts").write_text("")
    with pytest.raises(ConnectionFailed, match="does not know the board's host key") as caught:
        profile(candidates)
    assert caught.value.kind == "unknown-host"
    assert "log in once with `ssh board`" in str(caught.value.hint)
    assert (board.folder / "known_hosts").read_text() == ""


def test_a_changed_host_key_names_the_command_that_forgets_the_old_one(
    board: LoopbackBoard, candidates: list[Candidate]
) -> None:
    other = (board.folder / "other_key.pub").read_text().split()
    (board.folder / "known_hosts").write_text(f"[127.0.0.1]:{board.port} {other[0]} {other[1]}\n")
    with pytest.raises(ConnectionFailed, match="is not the one that this machine knows") as caught:
        profile(candidates)
    assert caught.value.kind == "changed-host"
    assert "ssh-keygen" in str(caught.value.hint)
    assert f'-R "[127.0.0.1]:{board.port}"' in str(caught.value.hint)


def test_a_board_that_is_off_refuses_the_connection(board: LoopbackBoard, candidates: list[Candidate]) -> None:
    board.stop()
    with pytest.raises(ConnectionFailed, match="nothing listens for ssh") as caught:
        profile(candidates)
    assert caught.value.kind == "refused"
