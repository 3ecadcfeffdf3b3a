"""Two processes and a sum of objectives: an adapter whose term is over must not stop the exchange of gradients."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.mark.slow
def test_two_processes_train_one_student_with_a_term_that_ends_and_gather_unequal_shares(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(Path(__file__).with_name("ddp_sum.py")), str(tmp_path)],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    states = [torch.load(tmp_path / f"student-{rank}.pt", weights_only=True) for rank in range(2)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    gathered = [json.loads((tmp_path / f"gathered-{rank}.json").read_text()) for rank in range(2)]
    assert gathered == [[[0.0, 0.0]] * 3 + [[1.0, 1.0]] * 2] * 2
