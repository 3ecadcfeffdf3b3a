"""Two processes under `torchrun` (gloo, CPU) train one student."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from edgekd.testing.harness import make_context
from edgekd.testing.toys import toy_cnn
from edgekd.train.fit import distil_
from tests.train.conftest import PREPROCESSING, config
from tests.train.ddp_run import COMMON, TRAININGS, data_for


@pytest.mark.slow
def test_two_processes_end_with_one_student_whose_loss_fell(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(Path(__file__).with_name("ddp_run.py")), str(tmp_path)],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    gathered = [json.loads((tmp_path / f"gathered-{rank}.json").read_text()) for rank in range(2)]
    assert gathered == [[[0.0, 0.0]] * 3 + [[1.0, 1.0]] * 2] * 2
    remembering = 0
    for objective, options in TRAININGS.items():
        kept = [torch.load(tmp_path / f"{objective}-state-{rank}.pt", weights_only=True) for rank in range(2)]
        assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0]), "no process sends its state"
        remembering += bool(kept[0])
        states = [torch.load(tmp_path / f"{objective}-{rank}.pt", weights_only=True) for rank in range(2)]
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
        facts = [json.loads((tmp_path / f"{objective}-{rank}.json").read_text()) for rank in range(2)]
        assert [fact["leads"] for fact in facts] == [True, False]
        assert facts[0]["loss"] == facts[1]["loss"]
        assert facts[0]["losses"][-1] < facts[0]["losses"][0]
        assert facts[0]["steps"] == 6 * 4
        alone = toy_cnn(seed=1)
        report = distil_(
            alone,
            toy_cnn(seed=2),
            data_for(objective),
            PREPROCESSING,
            config(**COMMON | options),
            make_context(tmp_path / f"alone-{objective}"),
        )
        assert facts[0]["loss"] == pytest.approx(report.loss, rel=0.5), "batches are shared out, not repeated"
        assert facts[0]["supervised"] == pytest.approx(report.supervised_loss, rel=0.5)
        assert facts[0]["concluded"].keys() == report.concluded.keys() == ({"dho"} if objective == "dho" else set())
    assert remembering == 5, "kdpp, taid, pskd, tgeo and the teacher that is trained along"
