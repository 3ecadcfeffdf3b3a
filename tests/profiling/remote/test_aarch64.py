"""The agent on an emulated aarch64 board: its outputs are those of this machine. Nothing is said about speed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edgekd.core.events import SilentReporter
from edgekd.profiling.agent.engines import input_values
from edgekd.profiling.remote.address import Address
from edgekd.profiling.remote.profile import profile_on_board
from edgekd.profiling.remote.request import BoardPlan
from edgekd.profiling.remote.ssh import Ssh
from tests.profiling.remote.aarch64 import SYSROOT_VARIABLE, emulated_python, missing_in
from tests.profiling.remote.conftest import candidate
from tests.profiling.remote.loopback import LoopbackBoard


@pytest.fixture
def sysroot() -> Path:
    """A folder that `benchmarks/aarch64_agent.py` has made."""
    named = os.environ.get(SYSROOT_VARIABLE)
    make = f"python benchmarks/aarch64_agent.py FOLDER makes one; then set {SYSROOT_VARIABLE}=FOLDER"
    if not named:
        pytest.skip(f"needs an aarch64 sysroot: {make}")
    if missing := missing_in(Path(named)):
        pytest.skip(f"the sysroot {named} has no {missing}: {make}")
    return Path(named)


@pytest.mark.slow
@pytest.mark.needs("aarch64", "sshd")
def test_an_emulated_aarch64_board_computes_what_this_machine_computes(
    board: LoopbackBoard, sysroot: Path, tmp_path: Path
) -> None:
    board.set_python(emulated_python(sysroot, board.bin / "python3"))
    made = candidate(tmp_path, "toy")
    plan = BoardPlan(runtimes=("onnxruntime",), warmup_s=0.0, duration_s=0.1, stall_s=300)
    found = profile_on_board(Ssh(Address("board")), [made], plan, reporter=SilentReporter())
    latency = found.report.entries[0].latency
    assert latency is not None
    assert "aarch64" in found.report.device
    assert isinstance(latency.environment["machine"], dict)
    assert latency.environment["machine"]["architecture"] == "aarch64"
    images = np.frombuffer(input_values([1, 3, 8, 8], 0), dtype=np.float32).reshape(1, 3, 8, 8)
    (here,) = onnxruntime.InferenceSession(str(next(iter(made.files.values())))).run(None, {"images": images})
    (there,) = found.outputs["toy@onnxruntime, 1 threads"]
    np.testing.assert_allclose(np.asarray(there).reshape(here.shape), here, rtol=1e-4, atol=1e-5)
