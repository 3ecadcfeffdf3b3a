from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from edgekd.core.runner import Runner, RunSettings
from edgekd.core.store import LocalStore
from tests.core.fakes import STAGES, ran
from tests.core.killed_run import interrupted_graph


def kill_halfway(root: Path) -> None:
    """Starts the run in a process of its own and kills that with signal 9 in the middle of the third node."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.core.killed_run", str(root)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "halfway\n"
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_a_killed_run_goes_on_where_it_stopped_and_ends_with_the_same_results(root: Path, tmp_path: Path) -> None:
    kill_halfway(root)
    resumed = Runner(STAGES, LocalStore(root)).run(interrupted_graph(), {}, RunSettings())
    assert [str(node.action) for node in resumed.nodes] == ["reuse", "reuse", "run", "run"]
    assert ran == ["step y", "step z", "c"]
    assert list((root / "scratch").iterdir()) == []

    whole = Runner(STAGES, LocalStore(tmp_path / "other")).run(interrupted_graph(), {}, RunSettings())
    assert [node.bundle.content for node in resumed.nodes] == [node.bundle.content for node in whole.nodes]
    assert [node.key for node in resumed.nodes] == [node.key for node in whole.nodes]


def test_rebuild_after_a_kill_starts_from_the_beginning(root: Path) -> None:
    kill_halfway(root)
    again = Runner(STAGES, LocalStore(root)).run(interrupted_graph(), {}, RunSettings(rebuild=frozenset({"slow"})))
    assert again.node("slow").reasons == ("rebuild asked for",)
    assert ran == ["step w", "step x", "step y", "step z", "c"]
