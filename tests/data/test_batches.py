from __future__ import annotations

import numpy as np

from edgekd.data.batches import epoch_order, eval_batches
from edgekd.data.transform import preprocess
from edgekd.testing.toy_data import toy_dataset
from tests.data.conftest import SMALL


def test_evaluation_sees_every_image_once_in_order_and_the_last_batch_may_be_smaller() -> None:
    split = toy_dataset(n=64).train
    batches = list(eval_batches(split, SMALL, 20))
    assert [len(batch.images) for batch in batches] == [20, 20, 8]
    assert np.concatenate([batch.indices for batch in batches]).tolist() == list(range(48))
    everything = preprocess(split.images(range(48), SMALL), SMALL)
    assert np.array_equal(np.concatenate([batch.images for batch in batches]), everything)
    assert split.labels is not None
    assert np.array_equal(np.concatenate([b.labels for b in batches if b.labels is not None]), split.labels)


def test_without_labels_a_batch_has_none() -> None:
    batch = next(eval_batches(toy_dataset(labelled=False).select, SMALL, 4))
    assert batch.labels is None


def test_the_order_of_an_epoch_is_a_repeatable_permutation_of_its_own() -> None:
    first = epoch_order(100, seed=1, epoch=0)
    assert sorted(first.tolist()) == list(range(100))
    assert np.array_equal(first, epoch_order(100, seed=1, epoch=0))
    assert not np.array_equal(first, epoch_order(100, seed=1, epoch=1))
    assert not np.array_equal(first, epoch_order(100, seed=2, epoch=0))
