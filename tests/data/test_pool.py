"""Images without labels beside the data: read, cleaned of what the data has, and sealed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekd.data.sources import load_dataset
from edgekd.errors import UserError
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
