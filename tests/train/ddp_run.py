"""Run by `torchrun` from `test_distributed.py`: a distilled student per process, saved with what was reported."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgekd.core.events import RecordingReporter
from edgekd.core.stage import Context, Execution
from edgekd.data.dataset import UNLABELLED, Dataset
from edgekd.testing.harness import make_context
from edgekd.testing.toy_data import toy_dataset
from edgekd.testing.toys import toy_cnn
from edgekd.train.fit import distil_
from edgekd.train.gather import gathered
from edgekd.train.loop import Loop
from tests.train.conftest import PREPROCESSING, config, events

TRAININGS: dict[str, dict[str, Any]] = {
    "kd": {"objective": "kd"},
    "kdpp": {"objective": "kdpp"},
    # With state, a memory of samples, layers of their own, further views.
    **{name: {"objective": name} for name in ("taid", "pskd", "ofa", "sla")},
    # A controller that learns on held-out images, which are shared out as well.
    "tgeo": {"objective": "tgeo", "objective_args": {"every": 2}},
    # Few labels, so that some shares of a batch have none; the student's last layer is rewritten at the end.
    "dho": {"objective": "dho", "ema_decay": 0.9},
    # The regressor of fitnet has no gradient of its own once its term is over, and DDP wants one in every step.
    "sum": {"objectives": [{"name": "kd"}, {"name": "fitnet", "weight": 0.1, "until_epoch": 2}]},
    # The processes exchange gradients in the last of three passes only.
    "cut": {"objectives": [{"name": "kd"}, {"name": "fitnet", "weight": 0.1, "until_epoch": 2}], "accumulate": 3},
    # They agree by the slowest that there is nothing to be won by compiling.
    "short": {"objective": "kd", "compile": "auto"},
    # A teacher that is trained along, and rests in the last epochs.
    "online": {"objectives": [{"name": "bdkd-online", "until_epoch": 4}, {"name": "kd"}], "teacher_views": 0},
}


COMMON: dict[str, Any] = {"epochs": 6, "teacher_views": 2, "batch_size": 32}


def data_for(training: str) -> Dataset:
    """The toy data; for `dho` with a label on every eighth image."""
    data = toy_dataset(n=160)
    if training != "dho":
        return data
    assert data.train.labels is not None
    labels = np.where(np.arange(len(data.train)) % 8, UNLABELLED, data.train.labels)
    return replace(data, train=data.train.labelled(labels))


def keep_state(states: list[dict[str, torch.Tensor]]) -> None:
    """From now on what must be alike at the end of each training is appended; BatchNorm's is each process's own."""
    run = Loop.run

    def watched(loop: Loop) -> dict[str, float]:
        means = run(loop)
        own = ("running_mean", "running_var", "num_batches_tracked")
        objectives, peer = loop.lesson.objectives, loop.lesson.peer
        found = {name: x.clone() for name, x in objectives.named_buffers() if not name.endswith(own)}
        found |= {name: x.clone() for name, x in objectives.named_parameters() if not x.requires_grad}
        found |= {} if peer is None else {name: x.detach().clone() for name, x in peer.named_parameters()}
        states.append(found)
        return means

    Loop.run = watched


def main(folder: Path) -> None:
    """Trains several times in one process group, as a graph with several training nodes does."""
    rank = int(os.environ["RANK"])
    states: list[dict[str, torch.Tensor]] = []
    keep_state(states)
    for number, (objective, options) in enumerate(TRAININGS.items()):
        base = make_context(folder / str(number))
        ctx = Context(
            **{**vars(base), "reporter": RecordingReporter(), "execution": Execution(device="cpu", threads=1)}
        )
        student = toy_cnn(seed=1)
        report = distil_(
            student,
            toy_cnn(seed=2),
            data_for(objective),
            PREPROCESSING,
            config(**COMMON | options),
            ctx,
        )
        torch.save(student.state_dict(), folder / f"{objective}-{rank}.pt")
        torch.save(states[-1], folder / f"{objective}-state-{rank}.pt")
        losses = [event["loss"] for event in events(ctx, "progress")]
        facts = {"leads": report.leads, "loss": report.loss, "losses": losses, "steps": report.steps}
        facts |= {"supervised": report.supervised_loss, "concluded": dict(report.concluded)}
        (folder / f"{objective}-{rank}.json").write_text(json.dumps(facts))
    rows = gathered(torch.full((3 - rank, 2), float(rank)))
    (folder / f"gathered-{rank}.json").write_text(json.dumps(rows.tolist()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
