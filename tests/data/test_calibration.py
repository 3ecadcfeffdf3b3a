from __future__ import annotations

import numpy as np
import pytest

from edgekd.core.preprocess import Preprocessing
from edgekd.data.calibration import calibration_samples
from edgekd.data.transform import preprocess
from edgekd.errors import UserError
from edgekd.testing.toy_data import toy_dataset
from tests.data.conftest import SMALL

DATA = toy_dataset(n=64)


def test_samples_come_from_train_alone() -> None:
    found = calibration_samples(DATA, SMALL, samples=1000, seed=0)
    train = preprocess(DATA.train.images(range(48), SMALL), SMALL)
    assert len(found.images) == 48
    assert {image.tobytes() for image in found.images} == {image.tobytes() for image in train}
    assert (
        found.description
        == "48 of 48 training images of toy (1000 were asked for), drawn stratified by class with seed 0"
    )


def test_stratified_samples_take_the_classes_in_turn() -> None:
    labels = calibration_samples(DATA, SMALL, samples=12, seed=3).labels
    assert labels is not None
    assert np.bincount(labels).tolist() == [3, 3, 3, 3]


def test_data_without_labels_is_drawn_at_random() -> None:
    found = calibration_samples(toy_dataset(labelled=False), SMALL, samples=8, seed=0)
    assert found.labels is None
    assert found.description == "8 of 52 training images of toy, drawn at random with seed 0"


def test_the_digest_is_repeatable_and_follows_seed_method_and_preprocessing() -> None:
    def drawn(p: Preprocessing = SMALL, seed: int = 0, **method: str) -> str:
        return calibration_samples(DATA, p, samples=10, seed=seed, **method).digest  # type: ignore[arg-type]

    assert drawn() == drawn()
    other = SMALL.model_copy(update={"mean": (0.4, 0.5, 0.5)})
    assert len({drawn(), drawn(seed=1), drawn(method="random"), drawn(other)}) == 4


def test_no_samples_are_refused() -> None:
    with pytest.raises(UserError, match="expected at least 1 sample, got 0"):
        calibration_samples(DATA, SMALL, samples=0, seed=0)
