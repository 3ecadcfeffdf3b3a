"""From what a user names (a folder, an array file, a calibration card) to a `Dataset`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd.data.arrays import part_from_arrays, parts_from_npz
from edgekd.data.cards import CalibrationCard, load_card
from edgekd.data.dataset import Dataset
from edgekd.data.folder import parts_from_folder
from edgekd.data.parts import Part, PartName, dataset_from_parts
from edgekd.data.sampling import CardSampling
from edgekd.errors import UserError


def load_dataset(spec: str, *, seed: int = 0, unlabelled: str | None = None) -> Dataset:
    """The data set that `spec` names, read and checked.

    Args:
        spec: A folder (`train/` and `val/`, or one folder per class, or images without labels), an `.npz` file
            (`images` uint8 (N, H, W, C) or (N, H, W), optional `labels`, `classes`, `val_images`, `val_labels`,
            `test_images`, `test_labels`), or a calibration card (its name, or a path to its YAML).
        seed: Another seed gives another split of the same images.
        unlabelled: A further source of images, in the same forms: its `train` part becomes the pool. Labels that it has
            are not looked at, and images that also stand in the data are left out, so that nothing of `select` and
            `test` can come back as something to train on.

    Raises:
        UserError: Nothing there, nothing in it, an unreadable image, labels that do not fit, or a pool without any
            image of its own; the message names it.
    """
    name, parts, sampling = _opened(spec)
    dataset = replace(dataset_from_parts(name, parts, seed=seed), calibration=sampling)
    if unlabelled is None:
        return dataset
    known = {key for part in parts.values() for key in part.keys}
    return _with_pool(dataset, known, *_opened(unlabelled)[:2])


def _with_pool(dataset: Dataset, known: set[bytes], name: str, parts: Mapping[PartName, Part]) -> Dataset:
    part = parts["train"]
    rows = np.array([row for row, key in enumerate(part.keys) if key not in known], dtype=np.int64)
    if not len(rows):
        raise UserError(
            f"The images without labels in {name} all stand in the data {dataset.name} already.",
            hint="give other images with --unlabelled, or leave it out",
        )
    shared = len(part.keys) - len(rows)
    said = f"{len(rows)} images without labels from {name} stand beside the data"
    if shared:
        said += f"; {shared} more of them stand in the data itself and were left out"
    bare = replace(part, labels=None)
    return dataset.with_pool(bare.split(rows), bare.content(rows), said)


def _opened(spec: str) -> tuple[str, Mapping[PartName, Part], CardSampling | None]:
    """(name, parts, how its card would have it sampled)."""
    try:
        return _read(spec, Path(spec).expanduser())
    except PermissionError as err:
        raise UserError(f"Data {spec}: {err.filename} may not be read.", hint="check the permissions") from err


def _read(spec: str, path: Path) -> tuple[str, Mapping[PartName, Part], CardSampling | None]:
    if path.is_dir():
        return path.resolve().name, parts_from_folder(path), None
    if path.is_file() and path.suffix == ".npz":
        return path.name, parts_from_npz(path), None
    if path.is_file() and path.suffix not in (".yaml", ".yml"):
        raise UserError(
            f"Data {spec}: expected a folder, an .npz file or a calibration card (.yaml).",
            hint="put the images into a folder, one sub-folder per class",
        )
    card = load_card(spec)
    return card.name, _parts_of_card(card), card.sampling


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
    return replace(dataset_from_parts(card.name, _parts_of_card(card), seed=seed), calibration=card.sampling)


def _parts_of_card(card: CalibrationCard) -> Mapping[PartName, Part]:
    if card.source.kind == "npz":
        return parts_from_npz(card.location)
    if card.source.kind == "folder":
        return parts_from_folder(card.location)
    from sklearn.datasets import load_digits

    found = load_digits()
    pixels = np.round(found.images * (255 / 16)).astype(np.uint8)
    return {"train": part_from_arrays(pixels, found.target, None, card.name)}
