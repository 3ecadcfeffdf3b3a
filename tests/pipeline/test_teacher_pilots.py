"""What the pilots of `edgekd teachers` train on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekd.core.bundle import ModelBundle
from edgekd.core.events import RecordingReporter
from edgekd.core.graph import Node
from edgekd.core.stage import Execution
from edgekd.core.store import LocalStore
from edgekd.pipeline.request import Options
from edgekd.pipeline.teacher_pilots import LABELS_ALONE, Pilots, labels_alone
from edgekd.pipeline.teacher_request import TeachersRequest
from edgekd.testing.toy_data import toy_dataset
from edgekd.testing.toys import toy_bundle, toy_recipe
from edgekd.train.batches import TrainBatches
from edgekd.train.config import TrainConfig

DATA = toy_dataset()
EPOCHS = 7


def configs(folder: Path, monkeypatch: pytest.MonkeyPatch, **options: object) -> list[TrainConfig]:
    """Of the training under one teacher, and of the one with labels alone."""
    store, drawn = LocalStore(folder / "store"), []

    def keep(self: Pilots, nodes: Sequence[Node], bundles: object, seed: int) -> list[ModelBundle]:
        drawn.extend(nodes)
        return [teacher] * len(nodes)

    monkeypatch.setattr(Pilots, "_made", keep)
    request = TeachersRequest(
        arch="edgekd:residual", arch_kwargs={"depths": [1, 1], "widths": [8, 8, 16]}, teachers={}, data="toy", seeds=1,
        pilot_share=1.0, options=Options(epochs=EPOCHS, **options),
    )  # fmt: skip
    teacher = toy_bundle(store.blobs, folder, seed=1)
    pilots = Pilots(
        request=request, dataset=DATA, store=store, reporter=RecordingReporter(), execution=Execution(device="cpu")
    )
    assert set(pilots.run({"one": teacher})) == {"one", LABELS_ALONE}
    return [TrainConfig.parse(node.config, node.name) for node in drawn]


def pixels(config: TrainConfig, epoch: int, *, teacher: bool) -> np.ndarray:
    batches = TrainBatches(
        split=DATA.train, preprocessing=toy_recipe().preprocessing, augment=config.augment, seed=5, batch_size=16,
        device=torch.device("cpu"), channels_last=False,
    )  # fmt: skip
    return np.concatenate([batch.images.numpy() for batch in batches.epoch(epoch, config.view(epoch, teacher=teacher))])


@pytest.mark.parametrize("options", [{}, {"teacher_views": 3}, {"objective": "kd:1+dist:1"}, {"augment": False}])
def test_a_pilot_with_labels_alone_sees_the_images_of_the_taught_ones_in_their_order(
    options: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught, alone = configs(tmp_path, monkeypatch, **options)
    assert taught.terms()
    assert (alone.terms(), alone.teacher_views) == ((), 0)
    for epoch in range(EPOCHS):
        assert np.array_equal(pixels(taught, epoch, teacher=True), pixels(alone, epoch, teacher=False))
    others = {"objective", "objectives", "teacher_views", "augment"}
    assert alone.model_dump(exclude=others) == taught.model_dump(exclude=others)


def test_views_that_are_new_in_each_epoch_for_a_live_teacher_are_so_without_one() -> None:
    taught = {"epochs": 5, "objective": "dml", "teacher_views": 0, "augment": {"flip": True}}
    alone = TrainConfig.parse(labels_alone(taught), "test")
    assert [alone.view(epoch, teacher=False) for epoch in range(5)] == [0, 1, 2, 3, 4]
