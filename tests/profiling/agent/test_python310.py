"""The agent run by the oldest Python that it allows, and its refusal by an older one, where this machine has them."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from edgekd.core.packing import unpacked
from edgekd.profiling.agent.wire import FAILED_EXIT, heard
from edgekd.profiling.remote.archive import agent_archive, agent_sources
from tests.profiling.agent import fake_onnxruntime

UNITS = {
    "seconds": 0.2,
    "most": 20,
    "plan": {"warmup_s": 0.0, "burst_s": 1e-3, "min_rounds": 6, "max_rounds": 6, "duration_s": 0.01, "precision": 1e-9},
}
NUMPY = """
class ndarray:
    def __init__(self, values): self.values = list(values)
    def reshape(self, shape): return self
    def astype(self, kind): return self
    def ravel(self): return self
    def tolist(self): return self.values

float32 = "float32"
def array(values, dtype=None): return ndarray(values[0])
def frombuffer(values, dtype=None): return ndarray(values)
"""
"""As much of NumPy as the adapter and the runtime made by hand need: no wheel of it is needed for this Python."""


@functools.cache
def python(version: str) -> str:
    """An interpreter of this version; skips the test where there is none."""
    kept = sorted(Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python"))
    for program in [*kept, shutil.which(f"python{version}")]:
        # A shim of pyenv is on the PATH and fails where no version is chosen.
        if program and subprocess.run([program, "-c", "pass"], capture_output=True, timeout=60).returncode == 0:
            return str(program)
    pytest.skip(f"needs Python {version}: on the PATH as python{version}, or among pyenv's versions")


class OldBoard:
    """A folder with the agent and a runtime made by hand, and the interpreter that runs them."""

    def __init__(self, folder: Path, version: str) -> None:
        self.python, self.agent = python(version), folder / agent_archive().name
        self.agent.write_bytes(agent_archive().content)
        packages = fake_onnxruntime.install(folder)
        (packages / "numpy.py").write_text(NUMPY)
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(packages)}

    def asked(self, *words: str, data: bytes = b"") -> tuple[int, dict[str, Any]]:
        """Exit code and last answer of one verb."""
        done = subprocess.run(
            [self.python, self.agent, *words], input=data, capture_output=True, timeout=60, env=self.environment
        )
        answers = [answer for line in done.stdout.decode().splitlines() if (answer := heard(line)) is not None]
        assert answers, done.stderr.decode()
        return done.returncode, answers[-1]

    def job(self, job_id: str, **changes: Any) -> dict[str, Any]:
        """What a job of two engines finds."""
        model = b"fine"
        digest = hashlib.sha256(model).hexdigest()
        assert self.asked("receive", digest, str(len(model)), data=model)[0] == 0
        engine = {
            "label": "fine", "runtime": "onnxruntime", "files": [digest], "kind": "onnx", "threads": 1, "batch": 1,
            "inputs": [{"name": "images", "shape": ["N", 3]}], "precision": "fp32", "fold_weights": False,
            "fingerprint": None,
        }  # fmt: skip
        spec = {
            "engines": [engine, {**engine, "label": "also fine"}], "seed": 0, "lock_clocks": False, "reserve_mib": 0.0,
            "plan": {"warmup_s": 0.0, "duration_s": 0.05, "precision": 0.5}, "open_s": 60.0, "stall_s": 60.0,
            "limit_s": 60.0, "queue_s": 60.0, **changes,
        }  # fmt: skip
        assert self.asked("submit", job_id, data=json.dumps(spec).encode())[1]["joined"] is False
        _, end = self.asked("watch", job_id)
        assert end["state"] == "done", end
        return self.asked("result", job_id)[1]


@pytest.fixture
def board(tmp_path: Path) -> OldBoard:
    return OldBoard(tmp_path, "3.10")


def test_every_module_of_the_agent_is_imported_by_python_3_10(board: OldBoard) -> None:
    names = [path.removesuffix(".py").replace("/", ".").removesuffix(".__init__") for path in agent_sources()]
    program = f"import sys, importlib; sys.path.insert(0, {str(board.agent)!r})\n"
    program += "".join(f"importlib.import_module({name!r})\n" for name in names) + "print(sys.version_info[:2])"
    done = subprocess.run([board.python, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "(3, 10)"), done.stderr


@pytest.mark.slow
def test_engines_are_measured_in_turns_and_in_units_by_python_3_10(board: OldBoard) -> None:
    code, hello = board.asked("hello")
    assert (code, hello["python"][:5], hello["runtimes"]["onnxruntime"]["ok"]) == (0, "3.10.", True)
    turns = board.job("turns")
    assert [len(unpacked(entry["timings"])) >= 6 for entry in turns["entries"]] == [True, True]
    assert turns["machine"]["python"].startswith("3.10.")
    assert board.asked("release", "turns")[1] == {"released": "turns"}
    units = board.job("units", units=UNITS)
    ends = units["runs"][0]["unit_ends_s"]
    assert [len(entry["units"]) for entry in units["entries"]] == [len(ends)] * 2


def test_an_older_python_is_refused_by_the_first_lines_and_not_by_a_traceback(tmp_path: Path) -> None:
    code, said = OldBoard(tmp_path, "3.8").asked("hello")
    assert (code, said["error"]) == (FAILED_EXIT, "old-python")
    assert "the board's python3 is 3.8" in said["message"]
