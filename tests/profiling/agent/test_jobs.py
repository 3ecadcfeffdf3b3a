"""Jobs of the real agent, run from its archive on this machine with a runtime that misbehaves on demand."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgekd.core.packing import unpacked
from edgekd.profiling.agent.folder import Folder
from edgekd.profiling.agent.jobs import STATUS_FILE, cancel, release, result, state_of, submit, watch
from edgekd.profiling.agent.queue import is_alive
from edgekd.profiling.agent.wire import AgentError, read_json, write_json
from edgekd.profiling.remote.archive import agent_archive
from tests.profiling.agent import fake_onnxruntime
from tests.profiling.agent.small_disk import fill, small_disk


class Bench:
    """An agent's folder and the jobs in it."""

    def __init__(self, root: Path) -> None:
        self.folder = Folder(root)
        self.agent = root / agent_archive().name
        self.agent.write_bytes(agent_archive().content)

    def push(self, content: str) -> str:
        digest = hashlib.sha256(content.encode()).hexdigest()
        path = self.folder.file(digest)
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        return digest

    def submit(self, job_id: str, models: list[str], **changes: Any) -> dict[str, Any]:
        return submit(self.folder, job_id, self.spec(models, **changes), agent=self.agent)

    def spec(self, models: list[str], **changes: Any) -> dict[str, Any]:
        engines = [
            {
                "label": model,
                "runtime": "onnxruntime",
                "files": [self.push(model)],
                "kind": "onnx",
                "inputs": [{"name": "images", "shape": ["N", 3]}],
                "threads": 1,
                "batch": 1,
                "precision": "fp32",
                "fold_weights": False,
                "fingerprint": None,
            }
            for model in models
        ]
        return {
            "engines": engines,
            "plan": {"warmup_s": 0.0, "duration_s": 0.05, "precision": 0.5},
            "seed": 0,
            "lock_clocks": False,
            "reserve_mib": 0.0,
            "open_s": 60.0,
            "stall_s": 60.0,
            "limit_s": 120.0,
            "queue_s": 60.0,
            **changes,
        }

    def ended(self, job_id: str) -> dict[str, Any]:
        seen: list[dict[str, Any]] = []
        watch(self.folder, job_id, seen.append)
        return seen[-1]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setenv("PYTHONPATH", str(fake_onnxruntime.install(tmp_path)))
    (tmp_path / "agent").mkdir()
    made = Bench(tmp_path / "agent")
    yield made
    for job in made.folder.jobs.glob("*"):
        cancel(made.folder, job.name)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("refuse", "cannot load the model: no graph"),
        ("raise", "it stopped running on the board: out of ideas"),
        ("crash", "the runtime crashed with SIGSEGV while it ran"),
        ("crash while opening", "the runtime crashed with SIGSEGV while it was opened"),
    ],
)
def test_an_engine_that_fails_is_an_entry_and_the_others_are_measured(bench: Bench, model: str, reason: str) -> None:
    bench.submit("job1", ["fine", model, "also fine"])
    assert bench.ended("job1")["state"] == "done"
    first, failed, last = result(bench.folder, "job1")["entries"]
    assert reason in failed["failure"]
    assert "timings" not in failed
    assert first["outputs"] == last["outputs"] == [[1.0, 2.0]]
    assert first["timings"]
    assert last["timings"]


def test_layers_that_are_not_recorded_are_a_sentence_beside_the_timings(bench: Bench) -> None:
    bench.submit("job1", ["fine"], layers=True)
    assert bench.ended("job1")["state"] == "done"
    (entry,) = result(bench.folder, "job1")["entries"]
    assert entry["timings"]
    assert entry["failed"] == ["its layers were not recorded: no trace"]


def test_a_crash_after_the_timing_costs_only_what_comes_on_top(bench: Bench) -> None:
    bench.submit("job1", ["crash afterwards"])
    assert bench.ended("job1")["state"] == "done"
    (entry,) = result(bench.folder, "job1")["entries"]
    assert entry["timings"]
    assert "failure" not in entry
    assert "compute" not in entry


def test_engines_that_do_not_fit_into_memory_together_are_measured_in_several_runs(bench: Bench) -> None:
    bench.submit("job1", ["fine", "crash", "also fine"], reserve_mib=1e9)
    assert bench.ended("job1")["state"] == "done"
    found = result(bench.folder, "job1")
    assert [entry.get("run") for entry in found["entries"]] == [0, None, 1]
    assert (found["groups"], len(found["runs"])) == (1, 2)


@pytest.mark.parametrize("model", ["hang", "hang while opening"])
def test_an_engine_that_hangs_is_ended_and_the_others_are_measured(bench: Bench, model: str) -> None:
    bench.submit("job1", [model, "fine"], open_s=3.0, stall_s=3.0)
    assert bench.ended("job1")["state"] == "done"
    hung, fine = result(bench.folder, "job1")["entries"]
    assert "it hung on the board: 3 s were not enough" in hung["failure"]
    assert ("--time-limit" in hung["failure"]) == (model == "hang")
    assert fine["timings"]


UNITS = {
    "seconds": 60.0,
    "most": 3,
    "plan": {
        "warmup_s": 0.0,
        "burst_s": 0.001,
        "min_rounds": 6,
        "max_rounds": 6,
        "duration_s": 0.01,
        "precision": 1e-9,
    },
}


@pytest.mark.parametrize(("changes", "count"), [({}, 3), ({"seconds": 1e-6}, 1)])
def test_a_job_of_units_ends_with_their_number_or_its_time_and_says_when_each_unit_ended(
    bench: Bench, changes: dict[str, float], count: int
) -> None:
    bench.submit("job1", ["fine", "also fine"], units={**UNITS, **changes})
    assert bench.ended("job1")["state"] == "done"
    found = result(bench.folder, "job1")
    (run,) = found["runs"]
    ends = run["unit_ends_s"]
    assert len(ends) == count
    assert ends == sorted(ends)
    for entry in found["entries"]:
        assert [len(unpacked(unit)) for unit in entry["units"]] == [6] * len(ends)
        assert entry["warmup_n"] == 3 * len(ends)
    assert {"before", "after", "floating", "took_s"} <= set(run)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("refuse", "refuse: ONNX Runtime 0.fake cannot load the model: no graph"),
        ("raise", "raise: it stopped running on the board: out of ideas"),
        ("crash", "crash: the runtime crashed with SIGSEGV while it ran"),
    ],
)
def test_an_engine_that_fails_ends_a_job_of_units_for_there_is_nothing_to_compare(
    bench: Bench, model: str, reason: str
) -> None:
    bench.submit("job1", ["fine", model], units=UNITS)
    end = bench.ended("job1")
    assert (end["state"], end["message"]) == ("failed", reason)


def test_a_job_that_takes_longer_than_its_limit_fails_and_says_so(bench: Bench) -> None:
    bench.submit("job1", ["hang"], limit_s=2.0)
    end = bench.ended("job1")
    assert (end["state"], end["error"]) == ("failed", "time-limit")
    assert "longer than its limit of 2 s" in end["message"]
    assert "fewer models at once" in end["hint"]


def test_a_job_that_waits_too_long_for_others_fails(bench: Bench) -> None:
    bench.submit("busy", ["hang"])
    bench.submit("later", ["fine"], queue_s=1.0)
    assert "the board was busy with other jobs for 1 s" in bench.ended("later")["message"]


def test_the_same_job_is_joined_while_it_runs_and_taken_when_it_is_done(bench: Bench) -> None:
    assert not bench.submit("job1", ["fine"])["joined"]
    assert bench.submit("job1", ["fine"])["joined"]
    bench.ended("job1")
    again = bench.submit("job1", ["fine"])
    assert (again["joined"], again["state"]) == (True, "done")


def test_a_released_job_can_be_read_once_more_but_is_measured_anew(bench: Bench) -> None:
    bench.submit("job1", ["fine"])
    bench.ended("job1")
    release(bench.folder, "job1")
    assert result(bench.folder, "job1")["entries"][0]["timings"]
    assert not bench.submit("job1", ["fine"])["joined"]


def test_a_result_that_nobody_fetched_is_removed_after_a_week(bench: Bench) -> None:
    bench.submit("old", ["fine"])
    bench.submit("new", ["fine"])
    bench.submit("read", ["fine"])
    for job_id in ("old", "new", "read"):
        assert bench.ended(job_id)["state"] == "done"
    long_ago = time.time() - 8 * 86400
    os.utime(bench.folder.jobs / "old" / STATUS_FILE, (long_ago, long_ago))
    _until_dead(bench.folder.jobs / "old")
    release(bench.folder, "read")
    assert [job.name for job in bench.folder.jobs.glob("*")] == ["new"]


def test_a_worker_that_was_killed_is_a_failed_job_and_does_not_block_the_next(bench: Bench) -> None:
    bench.submit("job1", ["hang"])
    job = bench.folder.jobs / "job1"
    pid = _pid(job)
    os.kill(pid, 9)
    _until_dead(job)
    state = state_of(bench.folder, "job1")
    assert state["state"] == "failed"
    assert "killed on the board" in state["message"]
    assert "enable-linger" in state["hint"]
    bench.submit("job2", ["fine"], queue_s=10.0)  # the process that hung ended with its worker
    assert bench.ended("job2")["state"] == "done"


def test_a_failed_job_is_started_again_by_the_same_request(bench: Bench) -> None:
    bench.submit("job1", ["hang"], limit_s=1.0)
    assert bench.ended("job1")["state"] == "failed"
    assert not bench.submit("job1", ["fine"])["joined"]
    assert bench.ended("job1")["state"] == "done"


def test_a_job_that_failed_is_started_again_even_before_its_worker_has_ended(bench: Bench) -> None:
    import fcntl

    job = bench.folder.jobs / "job1"
    job.mkdir(parents=True)
    write_json(job / STATUS_FILE, {"state": "failed"})
    with (job / "alive").open("w") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        assert not bench.submit("job1", ["fine"])["joined"]
        assert bench.ended("job1")["state"] == "done"


def test_a_cancelled_job_is_gone(bench: Bench) -> None:
    bench.submit("job1", ["hang"])
    assert cancel(bench.folder, "job1")
    with pytest.raises(AgentError, match="no job job1"):
        state_of(bench.folder, "job1")


@pytest.mark.parametrize("absent", [0, 1])
def test_a_job_over_files_that_were_not_pushed_is_refused(bench: Bench, absent: int) -> None:
    spec = bench.spec(["fine"])
    spec["engines"][0]["files"].append(bench.push("weights"))
    bench.folder.file(spec["engines"][0]["files"][absent]).unlink()
    with pytest.raises(AgentError, match="were not pushed"):
        submit(bench.folder, "job1", spec, agent=bench.agent)


def test_a_full_disk_refuses_a_job_before_it_starts(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekd.profiling.agent.folder.shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(AgentError, match="no space left on the board's disk") as caught:
        bench.submit("job1", ["fine"])
    assert caught.value.code == "disk-full"
    assert list(bench.folder.jobs.glob("*")) == []


@pytest.mark.needs("mount")
def test_a_disk_that_fills_during_the_measurement_fails_the_job_and_says_so(bench: Bench, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 24) as disk:
        full = Bench(disk)
        full.submit("job1", ["fine"], plan={"warmup_s": 1.0, "duration_s": 0.5, "precision": 1e-9})
        _pid(full.folder.jobs / "job1")
        fill(disk)
        end = full.ended("job1")
        assert (end["state"], end["error"]) == ("failed", "disk-full")
        with pytest.raises(AgentError, match="has no result"):
            result(full.folder, "job1")


@pytest.mark.parametrize("job_id", ["../files", "a/b", ""])
def test_an_id_never_becomes_a_path(bench: Bench, job_id: str) -> None:
    with pytest.raises(AgentError, match="is not the id of a job"):
        bench.submit(job_id, ["fine"])


def test_a_request_that_is_not_json_is_refused_in_the_agents_own_words(bench: Bench) -> None:
    done = subprocess.run(
        [sys.executable, str(bench.agent), "submit", "job1"], input="{", capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 9
    assert json.loads(done.stdout.partition("edgekd-agent: ")[2])["error"] == "bad-request"


def test_a_watcher_gives_a_sign_of_life_when_nothing_changes(bench: Bench) -> None:
    now = [0.0]
    said: list[float] = []
    job = bench.folder.jobs / "job1"
    job.mkdir(parents=True)
    write_json(job / STATUS_FILE, {"state": "done"})
    write_json(job / STATUS_FILE, {"state": "running"})

    def sleep(seconds: float) -> None:
        now[0] += 5
        if now[0] > 40:
            write_json(job / STATUS_FILE, {"state": "done"})

    with (job / "alive").open("w") as alive:
        import fcntl

        fcntl.flock(alive, fcntl.LOCK_EX)
        watch(bench.folder, "job1", lambda _: said.append(now[0]), clock_s=lambda: now[0], sleep=sleep)
    assert said == [0.0, 15.0, 30.0, 45.0]


def _pid(job: Path) -> int:
    for _ in range(400):
        status = read_json(job / STATUS_FILE) or {}
        if "pid" in status and "doing" in status:
            return int(status["pid"])
        time.sleep(0.05)
    raise AssertionError("the worker did not start")


def _until_dead(job: Path) -> None:
    for _ in range(200):
        if not is_alive(job):
            return
        time.sleep(0.05)
    raise AssertionError("the worker did not end")
