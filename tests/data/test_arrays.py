from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd.core.preprocess import Preprocessing
from edgekd.data.sources import dataset_from_arrays, load_dataset
from edgekd.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(40) % 4


def _saved(folder: Path, **arrays: Any) -> str:
    np.savez(folder / "data.npz", **arrays)
    return str(folder / "data.npz")


def test_images_and_labels_become_three_stratified_splits(tmp_path: Path) -> None:
    data = load_dataset(_saved(tmp_path, images=IMAGES, labels=LABELS, classes=np.array(list("abcd"))))
    assert data.classes == ("a", "b", "c", "d")
    assert data.test.labels is not None
    assert sorted(data.test.labels.tolist()) == [0, 1, 2, 3]


def test_a_split_returns_the_pixels_of_its_rows() -> None:
    data = dataset_from_arrays("x", IMAGES, LABELS)
    p = Preprocessing(size=(8, 8))
    pixels = {row.tobytes(): label for row, label in zip(IMAGES, LABELS, strict=True)}
    assert data.train.labels is not None
    for image, label in zip(data.train.images(range(len(data.train)), p), data.train.labels, strict=True):
        assert pixels[image.tobytes()] == label


def test_given_validation_arrays_are_halved(tmp_path: Path) -> None:
    spec = _saved(tmp_path, images=IMAGES, labels=LABELS, val_images=IMAGES[::-1][:20] // 2, val_labels=LABELS[:20])
    data = load_dataset(spec)
    assert (len(data.train), len(data.select), len(data.test)) == (40, 12, 8)


def test_grey_images_need_no_channel_axis_and_serve_colour_models_too(tmp_path: Path) -> None:
    data = load_dataset(_saved(tmp_path, images=IMAGES[..., 0], labels=LABELS))
    grey, colour = Preprocessing(size=(8, 8), mean=(0.5,), std=(0.5,)), Preprocessing(size=(8, 8))
    one, three = data.train.images([1], grey), data.train.images([1], colour)
    assert np.array_equal(three, np.repeat(one, 3, axis=3))


def test_images_of_another_size_are_resized_to_the_canvas_and_remembered() -> None:
    split = dataset_from_arrays("x", IMAGES).train
    p = Preprocessing(size=(12, 12), crop_fraction=0.75)
    first = split.images([3, 1, 3], p)
    assert first.shape == (3, 16, 16, 3)
    assert np.array_equal(first[0], first[2])
    assert np.array_equal(split.images([1], p)[0], first[1])


def test_two_preprocessings_with_one_canvas_do_not_share_their_crops() -> None:
    wide = np.random.default_rng(0).integers(0, 256, (10, 16, 27, 3), dtype=np.uint8)
    split = dataset_from_arrays("x", wide).train
    small, large = Preprocessing(size=(11, 11), crop_fraction=11 / 16), Preprocessing(size=(16, 16))
    assert small.canvas == large.canvas
    alone = dataset_from_arrays("x", wide).train.images([0], large)
    split.images([0], small)
    assert np.array_equal(split.images([0], large), alone)


def test_arrays_that_are_not_needed_are_left_alone_and_named(tmp_path: Path) -> None:
    data = load_dataset(_saved(tmp_path, images=IMAGES, files=np.array(["x"])))
    assert data.decisions[0] == "data.npz: arrays that edgekd has no use for were left alone: files"


def test_the_digest_follows_pixels_labels_and_class_names() -> None:
    other = IMAGES.copy()
    other[0, 0, 0, 0] ^= 1
    digests = {
        dataset_from_arrays("x", IMAGES, LABELS).digest,
        dataset_from_arrays("x", other, LABELS).digest,
        dataset_from_arrays("x", IMAGES, 3 - LABELS).digest,
        dataset_from_arrays("x", IMAGES, LABELS, classes="abcd").digest,
        dataset_from_arrays("x", IMAGES).digest,
    }
    assert len(digests) == 5
    assert dataset_from_arrays("another name", IMAGES, LABELS).digest in digests


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": IMAGES}, r"expected an array 'images', found image. Did you mean 'image'\?"),
        ({"images": IMAGES.astype(np.float32)}, "expected images of type uint8, got float32"),
        (
            {"images": IMAGES.transpose(0, 3, 1, 2)},
            r"expected shape \(N, H, W, 3\).*got \(40, 3, 8, 8\).*\n.*channels last",
        ),
        ({"images": IMAGES[:0]}, "expected at least one image, got none"),
        ({"images": IMAGES, "labels": LABELS[:30]}, "40 images but 30 labels"),
        ({"images": IMAGES, "labels": LABELS.astype(float)}, "expected a list of integer labels, got float64"),
        (
            {"images": IMAGES, "labels": LABELS - 1},
            r"expected labels 0 ... 2, got -1 at position 0(.|\n)*of their own: --unlabelled",
        ),
        ({"images": IMAGES, "labels": LABELS, "classes": np.array(["a", "b"])}, "expected labels 0 ... 1, got 3"),
        ({"images": IMAGES, "labels": LABELS * 0}, r"expected at least two classes, got one \('0'\)"),
        ({"images": IMAGES, "val_labels": LABELS}, "val_labels is there, but val_images is missing"),
        ({"images": IMAGES, "labels": LABELS, "val_images": IMAGES}, "train has labels and val has none"),
        ({"images": IMAGES, "classes": np.array([1, 2])}, "classes: expected a list of names, got int64"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_dataset(_saved(tmp_path, **arrays))


def test_object_arrays_are_refused_without_unpickling_them(tmp_path: Path) -> None:
    spec = _saved(tmp_path, images=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UserError, match=r"not a readable .npz file of plain arrays"):
        load_dataset(spec)


def test_a_file_that_only_claims_to_be_npz_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_text("hello")
    with pytest.raises(UserError, match=r"x.npz: not a readable .npz file"):
        load_dataset(str(tmp_path / "x.npz"))
