"""Images without labels beside the data: read, cleaned of what the data has, and sealed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgekd.data.dataset import UNLABELLED
from edgekd.data.sources import load_dataset
from edgekd.errors import EdgekdError, UserError
from edgekd.testing.toys import toy_recipe

P = toy_recipe().preprocessing


@pytest.fixture
def places(tmp_path: Path) -> tuple[str, str]:
    """An `.npz` with 40 labelled images, and one with 10 others and 6 of the same."""
    rng = np.random.default_rng(0)
    own, others = (rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8) for n in (40, 10))
    np.savez(tmp_path / "data.npz", images=own, labels=np.arange(40) % 4)
    np.savez(tmp_path / "more.npz", images=np.concatenate([others, own[::7]]), labels=np.zeros(16, dtype=np.int64) + 1)
    return str(tmp_path / "data.npz"), str(tmp_path / "more.npz")


def test_what_stands_in_the_data_is_left_out_of_the_pool_and_labels_are_not_looked_at(places: tuple[str, str]) -> None:
    data, more = places
    plain, beside = load_dataset(data), load_dataset(data, unlabelled=more)
    assert beside.pool is not None
    assert len(beside.pool) == 10
    assert beside.pool.labels is None
    assert beside.decisions[-1] == (
        "10 images without labels from more.npz stand beside the data; 6 more of them stand in the data itself and "
        "were left out"
    )
    np.testing.assert_array_equal(beside.pool.images([3], P)[0], np.load(more)["images"][3])
    assert beside.digest != plain.digest == beside.own_digest
    assert plain.own_digest == plain.digest
    np.testing.assert_array_equal(beside.train.labels, plain.train.labels)


def test_the_pool_survives_another_order_of_classes(places: tuple[str, str]) -> None:
    data, more = places
    names = ("0", "1", "2", "3", "4")
    plain, beside = load_dataset(data).with_classes(names), load_dataset(data, unlabelled=more).with_classes(names)
    assert beside.pool is not None
    assert beside.own_digest == plain.digest != beside.digest


def test_a_pool_without_any_image_of_its_own_is_refused(places: tuple[str, str]) -> None:
    data, _ = places
    with pytest.raises(UserError, match=r"all stand in the data data.npz already"):
        load_dataset(data, unlabelled=data)


def test_images_of_a_pool_that_is_not_there_cannot_be_trained_on(places: tuple[str, str]) -> None:
    with pytest.raises(UserError, match="has none"):
        load_dataset(places[0]).trained_on_pool(np.array([0]), np.array([1]))


def test_images_of_a_pool_are_added_without_a_label_or_with_one_and_the_digest_tells_them_apart(
    places: tuple[str, str],
) -> None:
    data, more = places
    beside, rows = load_dataset(data, unlabelled=more), np.array([7, 2])
    with_labels, without = (beside.trained_on_pool(rows, labels) for labels in (np.array([3, 0]), None))
    own = beside.train.labels
    assert own is not None
    assert without.train.labels is not None
    assert with_labels.train.labels is not None
    assert without.train.labels.tolist() == [*own.tolist(), UNLABELLED, UNLABELLED]
    assert with_labels.train.labels.tolist() == [*own.tolist(), 3, 0]
    assert without.train.labels.dtype == np.int64
    assert (without.train.partly_labelled, with_labels.train.partly_labelled) == (True, False)
    assert without.labelled
    assert without.select is beside.select
    assert len({beside.digest, with_labels.digest, without.digest}) == 3
    assert not without.train.subset(range(len(own))).partly_labelled


def test_data_without_labels_stays_without_whatever_is_added(places: tuple[str, str], tmp_path: Path) -> None:
    np.savez(tmp_path / "bare.npz", images=np.load(places[0])["images"])
    bare = load_dataset(str(tmp_path / "bare.npz"), unlabelled=places[1])
    for labels in (np.array([1]), None):
        pooled = bare.trained_on_pool(np.array([1]), labels)
        assert pooled.train.labels is None
        assert not pooled.train.partly_labelled


def test_another_order_of_classes_leaves_images_without_a_label_without_one(places: tuple[str, str]) -> None:
    pooled = load_dataset(places[0], unlabelled=places[1]).trained_on_pool(np.array([1]), None)
    turned = pooled.with_classes(("x", "3", "2", "1", "0")).train.labels
    assert turned is not None
    assert pooled.train.labels is not None
    assert turned.tolist() == [*(4 - pooled.train.labels[:-1]).tolist(), UNLABELLED]


def test_nothing_is_judged_on_images_without_a_label(places: tuple[str, str]) -> None:
    pooled = load_dataset(places[0], unlabelled=places[1]).trained_on_pool(np.array([1]), None)
    for part in ("select", "test"):
        with pytest.raises(EdgekdError, match=f"images of {part} have no label"):
            replace(pooled, **{part: pooled.train})
