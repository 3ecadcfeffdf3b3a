"""What is held out of a training: which images, how many, and that nothing else of it sees them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgekd.core.digest import digest
from edgekd.data.dataset import Dataset
from edgekd.errors import UserError
from edgekd.testing.toy_data import toy_dataset
from edgekd.train.held_out import HeldOut, held_out


def labelled(labels: list[int]) -> Dataset:
    """A data set whose training split has these labels."""
    data = toy_dataset(n=max(64, 2 * len(labels)))
    return replace(data, train=data.train.subset(range(len(labels))).labelled(np.array(labels, dtype=np.int64)))


def part(data: Dataset, share: float = 0.1, seed: int = 0, processes: int = 1) -> HeldOut:
    return held_out(data, share, seed, processes=processes)


def test_the_two_parts_are_the_training_split_and_every_class_gives_its_share() -> None:
    data = labelled([k for k, n in enumerate((200, 100, 50, 50)) for _ in range(n)])
    found = part(data)
    assert np.array_equal(np.sort(np.concatenate([found.kept, found.rows])), np.arange(400))
    assert data.train.labels is not None
    assert np.bincount(data.train.labels[found.rows]).tolist() == [20, 10, 5, 5]
    for rows in (found.kept, found.rows):
        assert np.array_equal(rows, np.sort(rows))


def test_which_images_are_held_out_is_a_function_of_the_seed() -> None:
    data = toy_dataset(n=200)
    assert np.array_equal(part(data).rows, part(data).rows)
    assert not np.array_equal(part(data).rows, part(data, seed=1).rows)


def test_of_many_small_classes_some_give_an_image_and_none_gives_its_last() -> None:
    data = labelled([k // 4 for k in range(400)] + [100] * 1)
    found = part(data, 0.5)
    assert data.train.labels is not None
    counts = np.bincount(data.train.labels[found.rows], minlength=101)
    assert len(found.rows) == 200
    assert set(counts[:100]) == {2}
    assert counts[100] == 0
    fewer = part(labelled([k // 4 for k in range(40)]), 0.25)
    assert len(fewer.rows) == 10


def test_images_whose_label_is_a_teachers_guess_are_not_held_out() -> None:
    data = toy_dataset(n=200)
    pool = toy_dataset(n=200, seed=5).train
    own = len(data.train)
    more = data.with_pool(pool, digest("pool"), "a pool").trained_on_pool(np.arange(100), np.zeros(100, dtype=np.int64))
    found = part(more, 0.2)
    assert more.guessed == 100
    assert len(found.rows) == round(0.2 * own)
    assert found.rows.max() < own
    assert len(found.kept) + len(found.rows) == own + 100


def test_too_few_images_are_an_error_that_counts_them() -> None:
    with pytest.raises(UserError, match=r"Of 20 labelled training images, 0.1 are 2 to hold out.*4 classes") as caught:
        part(labelled([0, 1, 2, 3] * 5))
    assert "raise held_out" in str(caught.value.hint)
    assert len(part(labelled([0, 1, 2, 3] * 5), 0.25).rows) == 5
    with pytest.raises(UserError, match=r"are 5 to hold out.*3 process\(es\) need at least 6"):
        part(labelled([0, 1, 2, 3] * 5), 0.25, processes=3)


def test_data_without_labels_is_an_error() -> None:
    with pytest.raises(UserError, match="the data has no labels"):
        part(toy_dataset(labelled=False))
