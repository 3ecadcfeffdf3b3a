"""From what a user names (a folder, an array file, a calibration card) to a `Dataset`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd.data.arrays import part_from_arrays, parts_from_npz
from edgekd.data.cards import CalibrationCard, load_card
from edgekd.data.dataset import Dataset
from edgekd.data.folder import parts_from_folder
from edgekd.data.parts import dataset_from_parts
from edgekd.errors import UserError


def load_dataset(spec: str, *, seed: int = 0) -> Dataset:
    """The data set that `spec` names, read and checked.

    Args:
        spec: A folder (`train/` and `val/`, or one folder per class, or images without labels), an `.npz` file
            (`images` uint8 (N, H, W, C) or (N, H, W), optional `labels`, `classes`, `val_images`, `val_labels`,
            `test_images`, `test_labels`), or a calibration card (its name, or a path to its YAML).
        seed: Another seed gives another split of the same images.

    Raises:
        UserError: Nothing there, nothing in it, an unreadable image, or labels that do not fit; the message names it.
    """
    try:
        return _loaded(spec, Path(spec).expanduser(), seed)
    except PermissionError as err:
        raise UserError(f"Data {spec}: {err.filename} may not be read.", hint="check the permissions") from err


def _loaded(spec: str, path: Path, seed: int) -> Dataset:
    if path.is_dir():
        return dataset_from_parts(path.resolve().name, parts_from_folder(path), seed=seed)
    if path.is_file() and path.suffix == ".npz":
        return dataset_from_parts(path.name, parts_from_npz(path), seed=seed)
    if path.is_file() and path.suffix not in (".yaml", ".yml"):
        raise UserError(
            f"Data {spec}: expected a folder, an .npz file or a calibration card (.yaml).",
            hint="put the images into a folder, one sub-folder per class",
        )
    return dataset_from_card(load_card(spec), seed=seed)


def dataset_from_arrays(
    name: str,
    images: npt.NDArray[Any],
    labels: npt.NDArray[Any] | None = None,
    *,
    classes: Sequence[str] | None = None,
    seed: int = 0,
) -> Dataset:
    """A data set made of arrays, split 80/10/10.

    Args:
        name: For people, and in messages.
        images: (N, H, W, C) or (N, H, W) uint8; C is 1 or 3.
        labels: (N,) integers from 0, or None.
        classes: Names in the order of the label numbers; the numbers themselves when not given.
        seed: Another seed gives another split.

    Raises:
        UserError: Types, shapes or label values that do not fit.
    """
    names = None if classes is None else tuple(classes)
    return dataset_from_parts(name, {"train": part_from_arrays(images, labels, names, name)}, seed=seed)


def dataset_from_card(card: CalibrationCard, *, seed: int = 0) -> Dataset:
    """The data set behind a calibration card, with the card's word on how to calibrate.

    Raises:
        UserError: What the card points at is missing or does not fit.
    """
    return replace(_behind_card(card, seed), calibration=card.sampling)


def _behind_card(card: CalibrationCard, seed: int) -> Dataset:
    if card.source.kind == "npz":
        return dataset_from_parts(card.name, parts_from_npz(card.location), seed=seed)
    if card.source.kind == "folder":
        return dataset_from_parts(card.name, parts_from_folder(card.location), seed=seed)
    from sklearn.datasets import load_digits

    found = load_digits()
    pixels = np.round(found.images * (255 / 16)).astype(np.uint8)
    return dataset_from_arrays(card.name, pixels, found.target, seed=seed)
