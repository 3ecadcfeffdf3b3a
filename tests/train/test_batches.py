"""Batches: each sample once per epoch, nearly equal sizes, enterable anywhere, shared out among processes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from edgekd.data.augment import Augment, augmented
from edgekd.data.batches import epoch_order
from edgekd.data.dataset import UNLABELLED, Dataset
from edgekd.errors import UserError
from edgekd.train.batches import TrainBatches
from tests.train.conftest import PREPROCESSING

AUGMENT = Augment(pad_px=1, flip=True)


def batches(data: Dataset, **options: Any) -> TrainBatches:
    chosen: dict[str, Any] = {"batch_size": 15, "channels_last": False, **options}
    return TrainBatches(
        split=data.train, preprocessing=PREPROCESSING, augment=AUGMENT, seed=3, device=torch.device("cpu"), **chosen
    )


def test_an_epoch_visits_every_sample_once_in_batches_that_differ_by_at_most_one(data: Dataset) -> None:
    ids = [batch.ids for batch in batches(data).epoch(0, 0)]
    assert sorted(np.concatenate(ids)) == list(range(64))
    assert {len(batch) for batch in ids} == {12, 13}


def test_two_epochs_have_two_orders(data: Dataset) -> None:
    first, second = (np.concatenate([b.ids for b in batches(data).epoch(epoch, 0)]) for epoch in (0, 1))
    assert not np.array_equal(first, second)


def test_an_epoch_can_be_entered_at_any_step(data: Dataset) -> None:
    whole = list(batches(data).epoch(2, 1))
    for first in range(len(whole) + 1):
        part = list(batches(data).epoch(2, 1, first))
        assert len(part) == len(whole) - first
        for mine, other in zip(part, whole[first:], strict=True):
            assert np.array_equal(mine.ids, other.ids)
            assert torch.equal(mine.images, other.images)


def test_a_batch_shows_the_view_that_was_asked_for(data: Dataset) -> None:
    batch = next(iter(batches(data).epoch(0, 5)))
    canvases = data.train.images(batch.ids, PREPROCESSING)
    assert np.array_equal(batch.images.numpy(), augmented(canvases, batch.ids, 5, PREPROCESSING, AUGMENT, 3))
    assert data.train.labels is not None
    assert batch.labels is not None
    assert np.array_equal(batch.labels.numpy(), data.train.labels[batch.ids])


def test_processes_share_the_batches_of_a_single_one(data: Dataset) -> None:
    alone = [batch.ids for batch in batches(data).epoch(0, 0)]
    ranks = [[b.ids for b in batches(data, rank=rank, world=2).epoch(0, 0)] for rank in range(2)]
    for whole, shares in zip(alone, zip(*ranks, strict=True), strict=True):
        assert np.array_equal(np.concatenate(shares), whole)


def test_channels_last_is_the_same_batch_in_another_memory_format(data: Dataset) -> None:
    batch = next(iter(batches(data, channels_last=True).epoch(0, 0)))
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch.images, next(iter(batches(data).epoch(0, 0))).images)


def test_data_without_labels_gives_none(unlabelled: Dataset) -> None:
    assert next(iter(batches(unlabelled).epoch(0, 0))).labels is None


@pytest.mark.parametrize("own", [2, 16, 60])
def test_few_labels_are_spread_evenly_over_the_batches_of_an_epoch(data: Dataset, own: int) -> None:
    assert data.train.labels is not None
    labels = np.where(np.arange(64) < own, data.train.labels, UNLABELLED)
    few = replace(data, train=data.train.labelled(labels))
    orders = []
    for epoch in range(4):
        made = list(batches(few).epoch(epoch, 0))
        counts = [int((batch.labels != UNLABELLED).sum()) for batch in made if batch.labels is not None]
        assert sum(counts) == own
        assert max(counts) - min(counts) <= 1 + (own == 60), "of 12 and of 13 images"
        orders.append(np.concatenate([batch.ids for batch in made]))
        assert sorted(orders[-1]) == list(range(64))
        part = list(batches(few).epoch(epoch, 0, 2))
        assert np.array_equal(part[0].ids, made[2].ids)
    assert len({tuple(order) for order in orders}) == 4
    kept = [[sample for sample in order if (sample < own) == mine] for order in orders[:1] for mine in (True, False)]
    plain = epoch_order(64, 3, 0)
    assert kept == [[sample for sample in plain if (sample < own) == mine] for mine in (True, False)]


def test_more_processes_than_a_batch_can_feed_are_an_error(data: Dataset) -> None:
    with pytest.raises(UserError, match="too small for 8 process"):
        batches(data, world=8)


def test_rows_that_are_not_visited_keep_their_places_and_their_pixels(data: Dataset) -> None:
    rows = np.flatnonzero(np.arange(64) % 3)
    found = batches(data, rows=rows)
    seen = list(found.epoch(0, 4))
    assert found.samples == len(rows)
    assert len(seen) == found.steps_per_epoch == 3
    assert sorted(np.concatenate([batch.ids for batch in seen])) == rows.tolist()
    canvases = data.train.images(seen[0].ids, PREPROCESSING)
    assert np.array_equal(seen[0].images.numpy(), augmented(canvases, seen[0].ids, 4, PREPROCESSING, AUGMENT, 3))
    with pytest.raises(UserError, match="from 1 training images are too small"):
        batches(data, rows=rows[:1])


def test_a_batch_by_its_number_is_that_of_the_epochs_in_view_0(data: Dataset) -> None:
    found = batches(data)
    for number in (0, 4, 5, 12):
        epoch, step = divmod(number, 5)
        expected = next(iter(found.epoch(epoch, 0, step)))
        assert np.array_equal(found.batch(number).ids, expected.ids)
        assert torch.equal(found.batch(number).images, expected.images)
