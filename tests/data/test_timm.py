"""RandAugment as a part of a view: replayable, and the caller's generator left alone."""

from __future__ import annotations

import random

import numpy as np
import pytest

from edgekd.core.preprocess import Preprocessing
from edgekd.data.augment import Augment, augmented
from edgekd.data.timm import rand_augmented
from edgekd.errors import UserError

P = Preprocessing(size=(16, 16))
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
IDS = np.arange(6)


def view(number: int, ids: np.ndarray = IDS, seed: int = 0) -> np.ndarray:
    return augmented(IMAGES[ids], ids, number, P, Augment(flip=True, rand_layers=2), seed)


def test_a_view_of_a_sample_is_the_same_in_whatever_batch() -> None:
    picked = np.array([4, 1])
    assert np.array_equal(view(3)[picked], view(3, picked))


def test_views_samples_and_seeds_differ() -> None:
    plain = augmented(IMAGES, IDS, 3, P, Augment(flip=True), 0)
    assert not np.array_equal(view(3), plain)
    assert not np.array_equal(view(3), view(4))
    assert not np.array_equal(view(3), view(3, seed=1))


def test_the_callers_generator_is_left_alone() -> None:
    random.seed(1)
    expected = random.random()
    random.seed(1)
    view(0)
    assert random.random() == expected


def test_a_greater_magnitude_changes_more() -> None:
    flat = np.full((32, 16, 16, 3), 100, dtype=np.uint8)
    flat[:, 4:12, 4:12] = 180
    change = [
        np.abs(rand_augmented(flat, np.arange(32), 0, 0, layers=2, magnitude=m).astype(int) - flat).mean()
        for m in (1.0, 9.0)
    ]
    assert change[0] < change[1]


def test_grey_images_are_refused() -> None:
    with pytest.raises(UserError, match="works on colour images"):
        rand_augmented(IMAGES[..., :1], IDS, 0, 0, layers=2, magnitude=9)
