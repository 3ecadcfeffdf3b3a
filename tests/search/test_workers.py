from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
import torch

from edgekd.errors import EdgekdError, UserError
from edgekd.search.scorer_spec import scorer_spec, scorer_spec_from_bundle
from edgekd.search.workers import LocalWorker, workers_from_text
from edgekd.search.workers.choice import check_workers
from edgekd.search.workers.cores import usable_cores
from edgekd.search.workers.processes import ProcessWorkers
from edgekd.testing.harness import make_context
from edgekd.testing.toys import toy_bundle, toy_cnn, toy_recipe
from tests.search.scoring_toys import factory, student, toy_batch, toy_spec

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def workers() -> Iterator[ProcessWorkers]:
    with closing(ProcessWorkers(toy_spec(), processes=2)) as started:
        yield started


def test_processes_score_as_this_process_does_bit_by_bit_and_in_order(workers: ProcessWorkers) -> None:
    recipes = [student(depth) for depth in (3, 1, 2, 1)]
    here = LocalWorker(toy_spec().scorer()).scores(recipes)
    assert workers.scores(recipes) == here
    assert len({score.values for score in here}) == 3


def test_scores_do_not_depend_on_the_threads_that_the_caller_has_left(workers: ProcessWorkers) -> None:
    scorer, before = toy_spec().scorer(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert [scorer.score(student(2))] == workers.scores([student(2)])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_candidate_that_ends_its_process_twice_is_skipped_with_the_reason(workers: ProcessWorkers) -> None:
    first, killer, last = workers.scores([student(1), factory("killer"), student(2)])
    assert killer.skipped == "It ended the worker process: probably out of memory."
    assert [first, last] == LocalWorker(toy_spec().scorer()).scores([student(1), student(2)])


def test_a_candidate_whose_process_dies_once_is_scored_all_the_same(workers: ProcessWorkers, tmp_path: Path) -> None:
    [score] = workers.scores([factory("killer_once", marker=str(tmp_path / "died"))])
    assert (tmp_path / "died").exists()
    assert score.skipped is None


def test_a_crash_is_not_taken_for_a_full_memory(workers: ProcessWorkers) -> None:
    [score] = workers.scores([factory("crasher")])
    assert score.skipped == "It ended the worker process (SIGSEGV)."


def test_an_error_of_a_candidate_is_raised_here_with_what_happened_there() -> None:
    with (
        closing(ProcessWorkers(toy_spec(), processes=1)) as alone,
        pytest.raises(EdgekdError, match="KeyError: 'no such layer'") as raised,
    ):
        alone.scores([factory("broken")])
    assert "tests/search/fatal.py" in "".join(raised.value.__notes__)


def test_a_scorer_that_cannot_be_built_is_the_user_s_error() -> None:
    spec = toy_spec("diswto")
    with closing(ProcessWorkers(spec, processes=1)) as alone, pytest.raises(UserError, match="Did you mean 'diswot'"):
        alone.scores([student(1)])


def test_an_interrupt_ends_the_search_and_all_its_processes(tmp_path: Path) -> None:
    search, scoring = _search_with_two_sleepers(tmp_path / "started")
    # As Ctrl-C does, which reaches all processes of the terminal.
    os.killpg(search.pid, signal.SIGINT)
    search.wait(10)
    assert search.returncode != 0
    assert _gone(scoring)


def test_processes_end_by_themselves_when_the_search_is_killed() -> None:
    code = (
        "import time\n"
        "from edgekd.search.workers.processes import ProcessWorkers\n"
        "from tests.search.scoring_toys import toy_spec, student\n"
        "if __name__ == '__main__':\n"
        "    workers = ProcessWorkers(toy_spec(), processes=1)\n"
        "    workers.scores([student(1)])\n"
        "    print(workers._workers[0]._process.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    search = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert search.stdout is not None
    scoring = int(search.stdout.readline())
    search.kill()
    search.communicate()
    assert _gone([scoring])


def test_a_script_without_a_guard_is_told_to_have_one(tmp_path: Path) -> None:
    script = tmp_path / "unguarded.py"
    script.write_text(
        "from edgekd.search.workers.processes import ProcessWorkers\n"
        "from tests.search.scoring_toys import toy_spec, student\n"
        "ProcessWorkers(toy_spec(), processes=1).scores([student(1)])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode != 0
    assert "__name__ == '__main__'" in done.stderr


def test_the_text_chooses_the_workers() -> None:
    assert isinstance(workers_from_text("1", toy_spec()), LocalWorker)
    assert isinstance(workers_from_text("auto", toy_spec("params", "macs")), LocalWorker)
    chosen = workers_from_text("3", toy_spec())
    assert isinstance(chosen, ProcessWorkers)
    assert chosen.width == 3


@pytest.mark.parametrize("text", ["0", "-1", "many", "", "ray", "1.5"])
def test_what_are_no_workers_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(UserError, match=r"`auto` .* a number of processes, or a Ray cluster"):
        check_workers(text)


def test_a_container_s_quota_limits_the_cores(tmp_path: Path) -> None:
    quota = tmp_path / "cpu.max"
    quota.write_text("max 100000\n")
    unlimited = usable_cores(quota)
    quota.write_text("50000 100000\n")
    assert (usable_cores(quota), usable_cores(tmp_path / "absent")) == (1, unlimited)


def test_the_spec_of_a_bundle_and_of_its_module_give_the_same_scores(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    bundle = toy_bundle(ctx.blobs, ctx.scratch, seed=3)
    stored = scorer_spec_from_bundle(bundle, ctx.blobs, toy_batch(), proxies=("diswot",), seeds=(0,))
    direct = scorer_spec(toy_cnn(seed=3), toy_recipe(), toy_batch(), proxies=("diswot",), seeds=(0,))
    assert stored.scorer().score(student(1)) == direct.scorer().score(student(1))


def _search_with_two_sleepers(started: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """A search in a process group of its own, and the ids of its two scoring processes, both of them at work."""
    search = subprocess.Popen(
        [sys.executable, "-m", "tests.search.interrupted_search", str(started)],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while not started.exists() or len(started.read_text().splitlines()) < 2:
        assert search.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return search, [int(line) for line in started.read_text().splitlines()]


def _gone(processes: list[int]) -> bool:
    """Whether all of them end within some seconds; a zombie has ended, and waits for whoever adopted it."""
    deadline = time.monotonic() + 10
    while any(_runs(process) for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _runs(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
