from __future__ import annotations

import numpy as np
import pytest

from edgekd.data import dataset as dataset_module
from edgekd.data.sources import dataset_from_arrays
from edgekd.data.transform import preprocess
from edgekd.errors import UserError
from edgekd.testing.toy_data import toy_dataset
from tests.data.conftest import SMALL

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(30) % 3


def test_labels_are_renumbered_to_the_models_order_of_classes() -> None:
    data = dataset_from_arrays("x", IMAGES, LABELS, classes=["ant", "bee", "cow"])
    model = data.with_classes(["cow", "dog", "ant", "bee"])
    assert data.train.labels is not None
    assert model.train.labels is not None
    assert np.array_equal(model.train.labels, np.array([2, 3, 0])[data.train.labels])
    assert model.classes == ("cow", "dog", "ant", "bee")
    assert model.digest != data.digest
    assert "renumbered to the 4 classes of the model" in model.decisions[-1]


def test_the_same_classes_and_data_without_labels_stay_as_they_are() -> None:
    data = dataset_from_arrays("x", IMAGES, LABELS, classes=["ant", "bee", "cow"])
    assert data.with_classes(data.classes) is data
    bare = dataset_from_arrays("x", IMAGES)
    assert bare.with_classes(["a", "b"]) is bare


def test_a_class_that_the_model_does_not_know_is_named() -> None:
    data = dataset_from_arrays("x", IMAGES, LABELS, classes=["ant", "bee", "cow"])
    with pytest.raises(UserError, match="the model does not know the classes cow"):
        data.with_classes(["ant", "bee", "dog"])


def test_labels_without_names_are_positions_of_the_models_logits() -> None:
    data = dataset_from_arrays("x", IMAGES, LABELS)
    named = data.with_classes(["cow", "ant", "bee"])
    assert named.classes == ("cow", "ant", "bee")
    assert np.array_equal(named.train.labels, data.train.labels)  # type: ignore[arg-type]
    assert "label numbers were taken as positions of the model's logits: 0 is 'cow'" in named.decisions
    assert named.digest != data.digest


def test_numbers_are_no_positions_where_the_count_differs_or_the_names_know_them() -> None:
    data = dataset_from_arrays("x", IMAGES, LABELS)
    with pytest.raises(UserError, match="the model does not know the classes 0, 1, 2"):
        data.with_classes(["ant", "bee", "cow", "dog"])
    swapped = data.with_classes(["2", "1", "0"])
    assert np.array_equal(swapped.train.labels, 2 - data.train.labels)  # type: ignore[operator]


def test_another_number_of_classes_than_the_model_has_is_refused_with_both_numbers() -> None:
    data = dataset_from_arrays("x", IMAGES, LABELS, classes=["ant", "bee", "cow"])
    data.check_classes(3)
    dataset_from_arrays("bare", IMAGES).check_classes(4)
    with pytest.raises(UserError, match=r"The model has 4 classes, but the data x has 3 \(ant, bee, cow\)"):
        data.check_classes(4)


def test_a_subset_keeps_images_and_labels_together() -> None:
    split = dataset_from_arrays("x", IMAGES, LABELS).train
    part = split.subset([4, 2])
    assert split.labels is not None
    assert part.labels is not None
    assert part.labels.tolist() == [split.labels[4], split.labels[2]]
    assert np.array_equal(part.images([0, 1], SMALL), split.images([4, 2], SMALL))


def test_sources_too_large_for_the_cache_give_the_same_images(monkeypatch: pytest.MonkeyPatch) -> None:
    large = np.random.default_rng(0).integers(0, 256, (20, 12, 16, 3), dtype=np.uint8)
    cached = dataset_from_arrays("x", large).train.images([0, 5], SMALL)
    monkeypatch.setattr(dataset_module, "CACHE_LIMIT_BYTES", 0)
    assert np.array_equal(dataset_from_arrays("x", large).train.images([0, 5], SMALL), cached)


def test_the_description_counts_the_splits() -> None:
    facts = toy_dataset(n=64).describe()
    assert (facts["train"], facts["select"], facts["test"], facts["classes"]) == (48, 8, 8, 4)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_toy_classes_can_be_told_apart_by_a_linear_rule(channels: int) -> None:
    from edgekd.core.preprocess import Preprocessing

    data = toy_dataset(n=160, channels=channels)
    p = Preprocessing(size=(8, 8), mean=(0.5,) * channels, std=(0.5,) * channels)
    assert data.train.labels is not None
    assert data.test.labels is not None
    train = preprocess(data.train.images(range(len(data.train)), p), p).reshape(len(data.train), -1)
    test = preprocess(data.test.images(range(len(data.test)), p), p).reshape(len(data.test), -1)
    means = np.stack([train[data.train.labels == k].mean(axis=0) for k in range(4)])
    found = ((test[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    assert (found == data.test.labels).mean() > 0.9
