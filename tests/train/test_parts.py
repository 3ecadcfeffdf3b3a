"""The smaller parts: averages, statistics, checkpoints, device names, optimizer groups, scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgekd.core.digest import digest
from edgekd.core.events import RecordingReporter
from edgekd.core.stage import Execution
from edgekd.data.dataset import Dataset
from edgekd.errors import UserError
from edgekd.testing.toys import toy_cnn
from edgekd.train.assemble import optimizer_for
from edgekd.train.averaging import WeightAverage, gather_statistics_
from edgekd.train.checkpoint import FILE, Checkpoints, Rhythm
from edgekd.train.engine import resolve_device, start_fabric
from edgekd.train.evaluate_torch import module_accuracy, module_logits
from tests.train.conftest import PREPROCESSING, Train, config


def test_an_average_forgets_the_start_and_follows_the_weights() -> None:
    layer = nn.Linear(2, 2)
    average = WeightAverage(layer, decay=0.9)
    for step in range(200):
        with torch.no_grad():
            layer.weight.fill_(1.0)
        average.update(step)
    average.write_()
    torch.testing.assert_close(layer.weight, torch.ones(2, 2))


def test_an_averaged_student_has_statistics_of_its_own_weights(train: Train, data: Dataset) -> None:
    student, report, _ = train(taught=False, epochs=12, ema_decay=0.9)
    plain, _, _ = train(taught=False, epochs=12, folder="plain")
    assert not all(torch.equal(a, b) for a, b in zip(student.parameters(), plain.parameters(), strict=True))
    assert module_accuracy(student, data.train, PREPROCESSING) > 0.9
    assert report.train_accuracy > 0.8


def test_gathered_statistics_are_the_mean_over_the_batches_and_dropout_sleeps() -> None:
    net = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm2d(2, momentum=0.3))
    batches = [torch.randn(6, 2, 3, 3) for _ in range(4)]
    gather_statistics_(net.train(), iter(batches))
    norm = net[1]
    assert isinstance(norm, nn.BatchNorm2d)
    expected = torch.stack([batch.mean((0, 2, 3)) for batch in batches]).mean(0)
    torch.testing.assert_close(norm.running_mean, expected)
    assert norm.momentum == 0.3
    assert net.training


def test_weight_decay_spares_biases_and_normalisation() -> None:
    groups = optimizer_for(toy_cnn(), config(weight_decay=0.1)).param_groups
    decay = {tuple(p.shape)[1:] != (): group["weight_decay"] for group in groups for p in group["params"]}
    assert decay == {True: 0.1, False: 0.0}


def test_checkpoints_are_due_by_age_and_seldom_within_an_epoch(tmp_path: Path) -> None:
    now = [0.0]
    rhythm = Rhythm(epoch_s=5, within_epoch_s=60)
    checkpoints = Checkpoints(tmp_path, digest("x"), RecordingReporter(), rhythm, clock=lambda: now[0])
    assert not checkpoints.due(epoch_ended=True)
    now[0] = 6
    assert checkpoints.due(epoch_ended=True)
    assert not checkpoints.due(epoch_ended=False)
    checkpoints.save({"step": 1})
    assert not checkpoints.due(epoch_ended=True)
    now[0] = 70
    assert checkpoints.due(epoch_ended=False)


def test_a_checkpoint_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path, digest("x"), RecordingReporter(), Rhythm())
    checkpoints.save({"step": 1, "totals": torch.ones(2)})

    def half(state: object, stream: object) -> None:
        stream.write(b"half")  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save({"step": 2})
    state = checkpoints.load()
    assert state is not None
    assert state["step"] == 1
    assert (tmp_path / FILE).exists()


def test_a_checkpoint_is_read_without_running_code(tmp_path: Path) -> None:
    reporter = RecordingReporter()
    torch.save({"fingerprint": str(digest("x")), "step": Path("anything but plain data")}, tmp_path / FILE)
    assert Checkpoints(tmp_path, digest("x"), reporter, Rhythm()).load() is None
    assert "cannot be read" in str(reporter.events[0]["text"])


def test_a_device_is_cpu_cuda_or_auto() -> None:
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("auto") in ("cpu", "cuda")
    with pytest.raises(UserError, match="Unknown device 'gpu'"):
        resolve_device("gpu")


@pytest.mark.parametrize(("capability", "warned"), [("AVX2", True), ("AVX512", False)])
def test_emulated_bfloat16_is_warned_of(capability: str, warned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    reporter = RecordingReporter()
    start_fabric(Execution(device="cpu"), "bf16-mixed", reporter)
    assert [event["level"] for event in reporter.events] == ["warning"] * warned


def test_several_processes_send_gradients_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []

    class Recorded:
        def __init__(self, **options: Any) -> None:
            made.append(options)

        def launch(self) -> None:
            return None

    monkeypatch.setattr("lightning_fabric.Fabric", Recorded)
    monkeypatch.setattr(torch.distributed, "is_torchelastic_launched", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    start_fabric(Execution(device="cpu"), "32-true", RecordingReporter())
    assert (made[0]["devices"], made[0]["num_nodes"]) == (2, 2)
    assert made[0]["strategy"]._ddp_kwargs["broadcast_buffers"] is False


def test_logits_of_a_split_come_in_order_and_leave_the_module_as_it_was(data: Dataset) -> None:
    network = toy_cnn().train()
    logits = module_logits(network, data.train, PREPROCESSING, Execution(device="cpu"))
    assert logits.shape == (64, 4)
    assert network.training
    one = module_logits(network, data.train.subset([5]), PREPROCESSING)
    np.testing.assert_allclose(one[0], logits[5], rtol=1e-4, atol=1e-5)
    assert 0 <= module_accuracy(network, data.train, PREPROCESSING) <= 1


def test_bf16_trains_too(train: Train, data: Dataset) -> None:
    student, _, _ = train(precision="bf16-mixed", epochs=10, objective="dkd", objective_args={"beta": 2})
    assert all(p.dtype == torch.float32 for p in student.parameters())
    assert module_accuracy(student, data.train, PREPROCESSING) > 0.6
