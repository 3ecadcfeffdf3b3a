from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from edgekd.core.preprocess import Preprocessing
from edgekd.data.cards import known_cards, load_card
from edgekd.data.sampling import CardSampling
from edgekd.data.sources import load_dataset
from edgekd.errors import UserError
from tests.data.conftest import FolderMaker

GREY = Preprocessing(size=(8, 8), mean=(0.5,), std=(0.5,))
CARD = {"name": "mine", "description": "d", "licence": "MIT", "source": {"kind": "folder", "path": "pictures"}}


def _written(folder: Path, **changes: object) -> str:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({**CARD, **changes}))
    return str(path)


@pytest.mark.parametrize("name", [card.name for card in known_cards()])
def test_every_shipped_card_loads_under_its_own_name_and_says_how_to_calibrate(name: str) -> None:
    card, data = load_card(name), load_dataset(name)
    assert card.name == name
    assert len(data.classes) == 10
    assert data.calibration == card.sampling is not None
    assert data.train.images([0], GREY).shape == (1, 8, 8, 1)


def test_the_digits_card_holds_the_whole_set() -> None:
    data = load_dataset("digits")
    assert len(data.train) + len(data.select) + len(data.test) == 1797
    pixels = data.train.images(range(50), GREY)
    assert (pixels.min(), pixels.max()) == (0, 255)


def test_a_cards_path_is_relative_to_the_card(tmp_path: Path, image_folder: FolderMaker) -> None:
    image_folder({"a": 4, "b": 4})
    data = load_dataset(_written(tmp_path))
    assert data.name == "mine"
    assert data.classes == ("a", "b")


def test_a_cards_sampling_goes_along_with_its_data_and_changes_no_digest(
    tmp_path: Path, image_folder: FolderMaker
) -> None:
    image_folder({"a": 4, "b": 4})
    silent = load_dataset(_written(tmp_path))
    data = load_dataset(_written(tmp_path, sampling={"samples": 5, "method": "random"}))
    assert silent.calibration is None
    assert data.calibration == CardSampling(samples=5, method="random")
    assert data.with_classes(["b", "a"]).calibration == data.calibration
    assert data.digest == silent.digest


def test_a_card_may_point_at_an_array_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=np.random.default_rng(0).integers(0, 256, (20, 4, 4), dtype=np.uint8))
    assert not load_dataset(_written(tmp_path, source={"kind": "npz", "path": "x.npz"})).labelled


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"license": "MIT"}, r"unknown key 'license'. Did you mean 'licence'\?"),
        ({"source": {"kind": "folder"}}, "npz and folder need a path"),
        ({"sampling": {"samples": 0}}, "'sampling.samples'"),
        ({"preprocessing": {"size": [8, 8]}}, "unknown key 'preprocessing'"),
    ],
)
def test_cards_with_mistakes_are_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_card(_written(tmp_path, **changes))


def test_a_card_whose_images_are_gone_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Calibration card mine: its images .*pictures do not exist"):
        load_dataset(_written(tmp_path))


def test_a_wrong_path_suggests_the_near_card_and_lists_what_is_taken() -> None:
    with pytest.raises(
        UserError, match=r"Data digit: no such folder, file or calibration card. Did you mean 'digits'\?"
    ):
        load_dataset("digit")


def test_a_single_image_file_is_refused_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"expected a folder, an .npz file or a calibration card"):
        load_dataset(str(tmp_path / "x.jpg"))


def test_a_card_that_is_not_yaml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"x.yaml: not a readable YAML file"):
        load_card(str(tmp_path / "x.yaml"))
