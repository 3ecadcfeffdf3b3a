from __future__ import annotations

import itertools
import os
import sys
import time
from pathlib import Path

import pytest

from edgekd.runtimes.engines.process import run_to_end


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def test_lines_are_passed_on_and_both_streams_are_kept() -> None:
    heard: list[str] = []
    ended = run_to_end(
        python("import sys; print('one', flush=True); sys.stderr.write('two\\n'); sys.exit(3)"),
        limit_s=30, on_line=heard.append,
    )  # fmt: skip
    assert (ended.code, ended.timed_out, ended.stopped) == (3, False, False)
    assert heard == ["one", "two"]
    assert ended.output == "one\ntwo\n"
    assert ended.death == "ended with exit code 3"


def test_one_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    code = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(note)!r}, 'w').write(str(child.pid))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)"
    )
    clock = itertools.chain([0.0, 0.0], itertools.repeat(1e9))
    seen: list[str] = []
    ended = run_to_end(python(code), limit_s=100, on_line=seen.append, clock_s=lambda: next(clock) if not seen else 1e9)
    assert ended.timed_out
    assert seen == ["ready"]
    child = int(note.read_text())
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]:
            break
        time.sleep(0.02)
    else:
        pytest.fail("the child of the process still runs")


def test_a_crash_and_a_kill_are_told_apart() -> None:
    crashed = run_to_end(python("import os; os.kill(os.getpid(), 11)"), limit_s=30)
    killed = run_to_end(python("import os; os.kill(os.getpid(), 9)"), limit_s=30)
    assert crashed.death == "crashed with SIGSEGV"
    assert killed.death == "was killed (SIGKILL), as when memory ends"


def test_it_stops_when_it_is_asked_to() -> None:
    ended = run_to_end(python("import time; print(1, flush=True); time.sleep(60)"), limit_s=60, stop=lambda: True)
    assert (ended.stopped, ended.timed_out) == (True, False)


def test_a_program_that_is_not_there_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        run_to_end([str(tmp_path / "nowhere")], limit_s=1)
    assert os.listdir(tmp_path) == []
