"""Images that come as arrays: checks their types, shapes and labels, and says what is wrong in the user's terms."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd.core.schema import suggest
from edgekd.data.dataset import ArrayImages
from edgekd.data.parts import Int64Array, Part, PartName
from edgekd.errors import UserError

_KEYS: dict[PartName, tuple[str, str]] = {
    "train": ("images", "labels"),
    "val": ("val_images", "val_labels"),
    "test": ("test_images", "test_labels"),
}
AnyArray = npt.NDArray[Any]


def part_from_arrays(
    images: AnyArray, labels: AnyArray | None, classes: tuple[str, ...] | None, where: str, note: str = ""
) -> Part:
    """One part, checked.

    Args:
        images: (N, H, W, C) or (N, H, W) uint8; C is 1 or 3.
        labels: (N,) integers from 0, or None.
        classes: Names in the order of the label numbers; the numbers themselves when None.
        where: Named in messages.
        note: A sentence for the decisions.

    Raises:
        UserError: Types, shapes or label values that do not fit.
    """
    pixels = _checked_images(images, where)
    numbers = None if labels is None else _checked_labels(labels, len(pixels), classes, where)
    if numbers is None:
        names: tuple[str, ...] = ()
    else:
        names = tuple(str(k) for k in range(int(numbers.max()) + 1)) if classes is None else classes
    keys = [hashlib.sha256(row.tobytes()).digest() for row in pixels]
    return Part(images=ArrayImages(pixels), keys=keys, labels=numbers, classes=names, notes=(note,) if note else ())


def parts_from_npz(path: Path) -> dict[PartName, Part]:
    """The parts of an `.npz` file.

    Raises:
        UserError: Not an array file, object arrays (they would need pickle), or arrays that do not fit.
    """
    arrays = _read(path)
    if "images" not in arrays:
        have = ", ".join(sorted(arrays)) or "nothing"
        raise UserError(f"{path}: expected an array 'images', found {have}.{suggest('images', arrays)}")
    known = {"classes", *(key for pair in _KEYS.values() for key in pair)}
    unused = sorted(set(arrays) - known)
    note = f"{path.name}: arrays that edgekd has no use for were left alone: {', '.join(unused)}" if unused else ""
    classes = _classes(arrays, path)
    parts: dict[PartName, Part] = {}
    for name, (images_key, labels_key) in _KEYS.items():
        if images_key in arrays:
            where = f"{path}: {images_key}"
            part_note = note if name == "train" else ""
            parts[name] = part_from_arrays(arrays[images_key], arrays.get(labels_key), classes, where, part_note)
        elif labels_key in arrays:
            raise UserError(f"{path}: {labels_key} is there, but {images_key} is missing.")
    return parts


def _read(path: Path) -> dict[str, AnyArray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as err:
        raise UserError(
            f"{path}: not a readable .npz file of plain arrays ({err}).",
            hint="write it with numpy.savez(path, images=..., labels=...); object arrays are refused",
        ) from err


def _classes(arrays: Mapping[str, AnyArray], path: Path) -> tuple[str, ...] | None:
    """Class names: those given, or else the numbers that any of the label arrays uses."""
    if "classes" in arrays:
        names = arrays["classes"]
        if names.ndim != 1 or names.dtype.kind != "U":
            raise UserError(f"{path}: classes: expected a list of names, got {names.dtype} of shape {names.shape}.")
        return tuple(str(name) for name in names)
    used = [arrays[key] for _, key in _KEYS.values() if key in arrays]
    if not used or any(labels.dtype.kind not in "iu" or labels.size == 0 for labels in used):
        return None
    return tuple(str(k) for k in range(max(int(labels.max()) for labels in used) + 1))


def _checked_images(images: AnyArray, where: str) -> npt.NDArray[np.uint8]:
    if images.dtype != np.uint8:
        raise UserError(
            f"{where}: expected images of type uint8, got {images.dtype}.",
            hint="store the pixels as they are, 0 ... 255; normalising is the preprocessing's work",
        )
    pixels: npt.NDArray[np.uint8] = images[..., None] if images.ndim == 3 else images
    if pixels.ndim != 4 or pixels.shape[3] not in (1, 3) or 0 in pixels.shape[1:3]:
        channels_first = images.ndim == 4 and images.shape[1] in (1, 3)
        raise UserError(
            f"{where}: expected shape (N, H, W, 3), (N, H, W, 1) or (N, H, W), got {images.shape}.",
            hint="move the channels last: images.transpose(0, 2, 3, 1)" if channels_first else None,
        )
    if len(pixels) == 0:
        raise UserError(f"{where}: expected at least one image, got none.")
    return np.ascontiguousarray(pixels)


def _checked_labels(labels: AnyArray, count: int, classes: tuple[str, ...] | None, where: str) -> Int64Array:
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise UserError(f"{where}: expected a list of integer labels, got {labels.dtype} of shape {labels.shape}.")
    if len(labels) != count:
        raise UserError(f"{where}: {count} images but {len(labels)} labels.")
    limit = None if classes is None else len(classes)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (limit is not None and high >= limit):
        wrong = low if low < 0 else high
        span = "0 and up" if limit is None else f"0 ... {limit - 1}"
        position = int(np.flatnonzero(labels == wrong)[0])
        apart = "images without a label go into a source of their own: --unlabelled FOLDER_OR_NPZ"
        raise UserError(
            f"{where}: expected labels {span}, got {wrong} at position {position}.", hint=apart if low < 0 else None
        )
    return labels.astype(np.int64)
