"""A training that is interrupted anywhere ends with the bits of one that never was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgekd.data.dataset import Dataset
from edgekd.errors import BuildFailed
from edgekd.testing.harness import make_context
from edgekd.testing.toys import toy_cnn
from edgekd.train.checkpoint import FILE, Rhythm
from edgekd.train.fit import distil_
from tests.train.conftest import PREPROCESSING, config, events

EVERY_STEP = Rhythm(epoch_s=0, within_epoch_s=0)
EVERY_EPOCH = Rhythm(epoch_s=0)
STEPS = 5 * 4


class Interrupted(Exception):
    pass


class DropoutNet(nn.Module):
    """A student whose steps use the random generator; it can be told to stop at its n-th training pass."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.body = toy_cnn(seed=1)
        self.drop = nn.Dropout(0.2)
        self.passes, self.stop_at = 0, stop_at

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            if self.passes == self.stop_at:
                raise Interrupted
            self.passes += 1
        logits: Tensor = self.body(self.drop(images))
        return logits


def finished(
    folder: Path, data: Dataset, teacher: nn.Module, stops: list[int], rhythm: Rhythm, **options: Any
) -> tuple[dict[str, Tensor], Any]:
    """Final weights and report of a training interrupted at each of `stops` training passes after the last start."""
    ctx = make_context(folder)
    for stop in stops:
        with pytest.raises(Interrupted):
            distil_(DropoutNet(stop), teacher, data, PREPROCESSING, config(epochs=5, **options), ctx, rhythm=rhythm)
    student = DropoutNet()
    report = distil_(student, teacher, data, PREPROCESSING, config(epochs=5, **options), ctx, rhythm=rhythm)
    return student.state_dict(), report


OPTIONS: list[dict[str, Any]] = [
    {"objective": "kd", "teacher_views": 2},
    {"objective": "kdpp", "optimizer": "adamw", "lr": 1e-3, "ema_decay": 0.9, "distill_warmup_epochs": 2},
    {"objective": "bdkd-online", "grad_clip": 1.0},
]
IDS = ["cached teacher", "live teacher, state in objective and average", "teacher trained along"]


@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
def test_an_interruption_at_any_step_changes_nothing(
    tmp_path: Path, data: Dataset, teacher: nn.Module, options: dict[str, Any]
) -> None:
    expected, whole = finished(tmp_path / "whole", data, teacher, [], EVERY_STEP, **options)
    assert whole.resumed_at_step is None
    for stop in (1, 8, 11, STEPS - 1):
        got, report = finished(tmp_path / f"stop{stop}", data, teacher, [stop], EVERY_STEP, **options)
        assert report.resumed_at_step == stop
        assert all(torch.equal(expected[name], got[name]) for name in expected), f"stopped at {stop}"
        assert (report.loss, report.train_accuracy) == (whole.loss, whole.train_accuracy)
        assert report.teacher == whole.teacher


def test_several_interruptions_between_checkpoints_change_nothing(
    tmp_path: Path, data: Dataset, teacher: nn.Module
) -> None:
    options = {"objective": "kd", "teacher_views": 2}
    expected, _ = finished(tmp_path / "whole", data, teacher, [], EVERY_EPOCH, **options)
    got, report = finished(tmp_path / "cut", data, teacher, [6, 3, 5], EVERY_EPOCH, **options)
    assert report.resumed_at_step == 8  # 6 steps, back to 4; 3 more, back to 4; 5 more, back to 8
    assert all(torch.equal(expected[name], got[name]) for name in expected)


KILLED = """
import os, signal, sys
from pathlib import Path
from edgekd.testing.harness import make_context
from edgekd.testing.toy_data import toy_dataset
from edgekd.testing.toys import toy_cnn
from edgekd.train.checkpoint import Rhythm
from edgekd.train.fit import distil_
from tests.train.conftest import PREPROCESSING, config

student, passes = toy_cnn(seed=1), 0
def count(module, args):
    global passes
    passes += module.training
    if passes == 10:
        os.kill(os.getpid(), signal.SIGKILL)
student.register_forward_pre_hook(count)
distil_(student, toy_cnn(seed=2), toy_dataset(n=80), PREPROCESSING, config(epochs=5, teacher_views=2),
        make_context(Path(sys.argv[1])), rhythm=Rhythm(epoch_s=0, within_epoch_s=0))
"""


def test_a_killed_process_changes_nothing(tmp_path: Path, data: Dataset) -> None:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "killed")], cwd=root, env=environment, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    results = []
    for folder in ("killed", "whole"):
        student, ctx = toy_cnn(seed=1), make_context(tmp_path / folder)
        report = distil_(student, toy_cnn(seed=2), data, PREPROCESSING, config(epochs=5, teacher_views=2), ctx)
        results.append((student.state_dict(), report.resumed_at_step))
    (killed_state, resumed_at), (whole_state, _) = results
    assert resumed_at == 9
    assert all(torch.equal(whole_state[name], killed_state[name]) for name in whole_state)


def test_a_checkpoint_of_another_training_is_not_used(tmp_path: Path, data: Dataset, teacher: nn.Module) -> None:
    ctx = make_context(tmp_path)
    with pytest.raises(Interrupted):
        distil_(DropoutNet(3), teacher, data, PREPROCESSING, config(), ctx, rhythm=EVERY_STEP)
    report = distil_(DropoutNet(), teacher, data, PREPROCESSING, config(lr=0.01), ctx)
    assert report.resumed_at_step is None
    assert any("belongs to another training" in event["text"] for event in events(ctx, "message"))


def test_an_unreadable_checkpoint_is_not_used_and_said(tmp_path: Path, data: Dataset, teacher: nn.Module) -> None:
    ctx = make_context(tmp_path)
    (ctx.scratch / FILE).write_bytes(b"no checkpoint")
    report = distil_(toy_cnn(), teacher, data, PREPROCESSING, config(epochs=1), ctx)
    assert report.resumed_at_step is None
    assert any("cannot be read" in event["text"] for event in events(ctx, "message"))


def test_a_checkpoint_without_the_teachers_outputs_is_not_used(
    tmp_path: Path, data: Dataset, teacher: nn.Module
) -> None:
    ctx = make_context(tmp_path)
    options = config(epochs=5, teacher_views=2)
    with pytest.raises(Interrupted):
        distil_(DropoutNet(9), teacher, data, PREPROCESSING, options, ctx, rhythm=EVERY_STEP)
    (ctx.scratch / "teacher-logits.f32").unlink()
    report = distil_(DropoutNet(), teacher, data, PREPROCESSING, options, ctx)
    assert report.resumed_at_step is None
    assert any("stored outputs are gone" in event["text"] for event in events(ctx, "message"))


def test_a_checkpoint_is_not_taken_up_with_the_empty_cache_of_another_training(
    tmp_path: Path, data: Dataset, teacher: nn.Module
) -> None:
    expected, _ = finished(tmp_path / "whole", data, teacher, [], EVERY_STEP, teacher_views=2)
    ctx = make_context(tmp_path / "cut")
    options = config(epochs=5, teacher_views=2)
    with pytest.raises(Interrupted):
        distil_(DropoutNet(9), teacher, data, PREPROCESSING, options, ctx, rhythm=EVERY_STEP)
    another = config(epochs=5, teacher_views=2, lr=0.01)  # as another number of processes would be
    with pytest.raises(Interrupted):
        distil_(DropoutNet(1), teacher, data, PREPROCESSING, another, ctx)
    student = DropoutNet()
    report = distil_(student, teacher, data, PREPROCESSING, options, ctx)
    assert report.resumed_at_step is None
    assert all(torch.equal(expected[name], value) for name, value in student.state_dict().items())


def test_a_training_that_starts_anew_and_diverges_does_not_name_the_checkpoint_that_it_gave_up(
    tmp_path: Path, data: Dataset, teacher: nn.Module
) -> None:
    ctx = make_context(tmp_path)
    options = config(epochs=5, teacher_views=2)
    with pytest.raises(Interrupted):
        distil_(DropoutNet(2), teacher, data, PREPROCESSING, options, ctx, rhythm=EVERY_STEP)
    (ctx.scratch / "teacher-logits.f32").unlink()
    student = DropoutNet()
    student.body.register_forward_hook(lambda module, args, output: output * (float("nan") if module.training else 1))
    with pytest.raises(BuildFailed) as raised:
        distil_(student, teacher, data, PREPROCESSING, options, ctx)
    assert FILE not in f"{raised.value.message} {raised.value.hint}"
