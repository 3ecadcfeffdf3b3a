from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from edgekd.data.sources import load_dataset
from edgekd.errors import UserError
from tests.data.conftest import SMALL, FolderMaker


def test_class_folders_alone_are_split_80_10_10_and_the_decision_warns(image_folder: FolderMaker) -> None:
    data = load_dataset(str(image_folder({"cat": 20, "dog": 20})))
    assert data.classes == ("cat", "dog")
    assert (len(data.train), len(data.select), len(data.test)) == (32, 4, 4)
    assert "has seen all three" in data.decisions[0]
    assert data.train.images([0, 3], SMALL).shape == (2, 8, 8, 3)


def test_a_validation_folder_is_halved_and_train_is_left_whole(image_folder: FolderMaker) -> None:
    data = load_dataset(str(image_folder({"train/a": 5, "train/b": 5, "val/a": 6, "val/b": 6})))
    assert (len(data.train), len(data.select), len(data.test)) == (10, 6, 6)
    assert data.select.labels is not None
    assert np.bincount(data.select.labels).tolist() == [3, 3]
    assert "halved" in data.decisions[0]


def test_given_validation_and_test_folders_are_kept_as_they_are(image_folder: FolderMaker) -> None:
    places = {"train/a": 4, "train/b": 4, "valid/a": 3, "valid/b": 3, "test/a": 2, "test/b": 2}
    data = load_dataset(str(image_folder(places)))
    assert (len(data.train), len(data.select), len(data.test)) == (8, 6, 4)


def test_a_class_may_be_called_train(image_folder: FolderMaker) -> None:
    assert load_dataset(str(image_folder({"bus": 5, "train": 5}))).classes == ("bus", "train")


def test_a_flat_folder_is_data_without_labels(image_folder: FolderMaker) -> None:
    data = load_dataset(str(image_folder({"": 20})))
    assert not data.labelled
    assert data.classes == ()
    assert data.train.labels is None
    assert len(data.select) == 2


def test_the_digest_follows_pixels_and_seed_and_neither_path_nor_file_name(image_folder: FolderMaker) -> None:
    root = image_folder({"a": 10, "b": 10})
    before = load_dataset(str(root)).digest
    moved = root.rename(root.with_name("elsewhere"))
    (moved / "a" / "000.png").rename(moved / "a" / "000_renamed.png")
    assert load_dataset(str(moved)).digest == before
    assert load_dataset(str(moved), seed=1).digest != before
    Image.new("RGB", (4, 4)).save(moved / "a" / "000_renamed.png")
    assert load_dataset(str(moved)).digest != before


def test_images_that_stand_in_train_and_validation_are_counted_in_the_decisions(image_folder: FolderMaker) -> None:
    root = image_folder({"train/a": 5, "train/b": 5, "val/a": 4, "val/b": 4})
    (root / "val/a/000.png").write_bytes((root / "train/a/000.png").read_bytes())
    assert "1 of 8 val images also stand in train" in load_dataset(str(root)).decisions


def test_other_files_are_named_and_left_alone(image_folder: FolderMaker) -> None:
    root = image_folder({"a": 5, "b": 5})
    (root / "a" / "notes.txt").write_text("taken in the morning")
    (root / "a" / ".DS_Store").write_text("")
    assert "pictures: 1 files that are not images were left alone (notes.txt ...)" in load_dataset(str(root)).decisions


def test_numbers_as_class_names_keep_the_text_order_of_image_folder_and_say_so(image_folder: FolderMaker) -> None:
    data = load_dataset(str(image_folder({"1": 4, "2": 4, "10": 4})))
    assert data.classes == ("1", "10", "2")
    assert any("ordered as text (1, 10, 2 ...)" in decision for decision in data.decisions)


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({}, "no images found"),
        ({"cat": 5}, r"expected at least two classes, got one \('cat'\)"),
        ({"cat": 5, "dog": 0}, "the class folder dog holds no images"),
        ({"": 3, "cat": 3}, r"expected images or class folders, found both \(000.png beside cat/\)"),
        ({"train/a": 3, "train/b": 3, "val/a": 3, "val/c": 3}, "classes that train does not have: c"),
        ({"train/a": 3, "train/b": 3, "val": 3}, "train has labels and val has none"),
        ({"train": 3, "training": 3}, "train and training both look like the train set"),
        ({"val/a": 3}, "there is val, but no train folder"),
        ({"a": 1, "b": 1}, "2 images are too few"),
    ],
)
def test_folders_that_make_no_sense_are_refused(
    image_folder: FolderMaker, places: dict[str, int], message: str
) -> None:
    root = image_folder({**places, "": places.get("", 0)})
    with pytest.raises(UserError, match=message):
        load_dataset(str(root))


def test_an_unreadable_image_is_named_when_the_folder_is_opened(image_folder: FolderMaker) -> None:
    root = image_folder({"a": 5, "b": 5})
    (root / "b" / "broken.jpg").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"b/broken.jpg: cannot be read as an image"):
        load_dataset(str(root))


def test_a_truncated_image_is_named_when_its_pixels_are_needed(image_folder: FolderMaker) -> None:
    root = image_folder({"": 10})
    for path in root.glob("*.png"):
        path.write_bytes(path.read_bytes()[:-60])
    data = load_dataset(str(root))
    with pytest.raises(UserError, match=r"\d\d\d.png: cannot be read as an image"):
        data.train.images([0], SMALL)


def test_sixteen_bit_images_are_refused_rather_than_cut_off(image_folder: FolderMaker) -> None:
    root = image_folder({"": 5})
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(root / "deep.png")
    with pytest.raises(UserError, match=r"deep.png: expected 8 bits per channel, got an image of mode I;16"):
        load_dataset(str(root))
