"""The main job under `torchrun`: ranks train together, and one of them writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline.world import World


@pytest.mark.slow
def test_two_processes_train_together_and_leave_one_result(world: World) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "edgekd"]
    done = subprocess.run(
        [*launcher, *world.command("--data", str(world.data), "--students", "prune")],
        cwd=world.folder,
        capture_output=True,
        text=True,
        timeout=400,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = json.loads((world.folder / "out" / "metrics.json").read_text())
    assert "teacher-recover" in metrics["stages"]
    assert done.stdout.count("verdict") == 1
