"""Run by `torchrun` from `test_distributed_sum.py`: a sum of objectives of which one ends, and unequal shares."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from edgekd.core.stage import Context, Execution
from edgekd.testing.harness import make_context
from edgekd.testing.toy_data import toy_dataset
from edgekd.testing.toys import toy_cnn
from edgekd.train.fit import distil_
from edgekd.train.gather import gathered
from tests.train.conftest import PREPROCESSING, config

# The regressor of fitnet has no gradient of its own once its term is over, and DDP wants one in every step.
TERMS = [{"name": "kd"}, {"name": "fitnet", "weight": 0.1, "until_epoch": 2}]


def main(folder: Path) -> None:
    """Saves the student of each process and what it gathered."""
    rank = int(os.environ["RANK"])
    base = make_context(folder)
    ctx = Context(**{**vars(base), "execution": Execution(device="cpu", threads=1)})
    student = toy_cnn(seed=1)
    options = config(epochs=4, teacher_views=2, batch_size=32, objectives=TERMS)
    distil_(student, toy_cnn(seed=2), toy_dataset(n=160), PREPROCESSING, options, ctx)
    torch.save(student.state_dict(), folder / f"student-{rank}.pt")
    rows = gathered(torch.full((3 - rank, 2), float(rank)))
    (folder / f"gathered-{rank}.json").write_text(json.dumps(rows.tolist()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
