"""Images that come as files: finds them, numbers their classes as torchvision's ImageFolder does, and hashes them.

Every file is read once when the folder is opened, for its hash and its header; pixels are decoded when they are needed.
Orientation tags (EXIF) are not applied, as training pipelines do not apply them either.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from edgekd.data.dataset import Images
from edgekd.data.parts import Int64Array, Part, PartName
from edgekd.errors import UserError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
_PART_NAMES: dict[str, PartName] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises for bad files


class FileImages(Images):
    """Images in files.

    Args:
        paths: One per row.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__()
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, row: int) -> Image.Image:
        path = self.paths[row]
        try:
            with Image.open(path) as image:
                image.load()
        except _DECODE_ERRORS as err:
            raise _unreadable(path, err) from err
        return image

    def name(self, row: int) -> str:
        return str(self.paths[row])


def parts_from_folder(root: Path) -> dict[PartName, Part]:
    """The parts of a folder.

    The folder holds `train/` with `val/` and/or `test/`, or one sub-folder per class, or images without labels. It
    counts as split only when all its sub-folders are named as parts, so that a class may be called `train`.

    Raises:
        UserError: No images, an unreadable one, an empty class, or a validation class that train does not have.
    """
    folders = _folders(root)
    if not folders or not all(folder.name in _PART_NAMES for folder in folders):
        return {"train": _part(root, None)}
    places: dict[PartName, Path] = {}
    for folder in folders:
        name = _PART_NAMES[folder.name]
        if name in places:
            raise UserError(f"Data {root}: {places[name].name} and {folder.name} both look like the {name} set.")
        places[name] = folder
    if "train" not in places:
        raise UserError(f"Data {root}: there is {', '.join(f.name for f in folders)}, but no train folder.")
    train = _part(places["train"], None)
    others = {name: _part(places[name], train.classes) for name in ("val", "test") if name in places}
    return {"train": train, **others}  # type: ignore[dict-item]  # the keys of a literal tuple are part names


def _part(root: Path, classes: tuple[str, ...] | None) -> Part:
    """All images below `root`; class numbers are positions in `classes`, or in its own sorted names when None."""
    folders = _folders(root)
    loose, strangers = _images(root, deep=False)
    if loose and folders:
        raise UserError(
            f"Data {root}: expected images or class folders, found both ({loose[0].name} beside {folders[0].name}/).",
            hint="move the images into class folders, or the folders elsewhere",
        )
    if not folders:
        if not loose:
            raise UserError(f"Data {root}: no images found.", hint=f"readable: {' '.join(sorted(SUFFIXES))}")
        return Part(images=FileImages(loose), keys=_keys(loose), labels=None, classes=(), notes=_note(root, strangers))
    names = tuple(folder.name for folder in folders)
    if classes is not None and (unknown := [name for name in names if name not in classes]):
        raise UserError(
            f"Data {root}: classes that train does not have: {', '.join(unknown[:8])}.",
            hint="the folder names of train and validation must be the same",
        )
    classes = names if classes is None else classes
    paths: list[Path] = []
    labels: list[int] = []
    for folder in folders:
        found, others = _images(folder, deep=True)
        strangers += others
        if not found:
            raise UserError(
                f"Data {root}: the class folder {folder.name} holds no images.",
                hint="remove the folder, or add images: an empty class would shift the numbers of the others",
            )
        paths += found
        labels += [classes.index(folder.name)] * len(found)
    notes = (*_numeric_note(names), *_note(root, strangers))
    numbers: Int64Array = np.array(labels, dtype=np.int64)
    return Part(images=FileImages(paths), keys=_keys(paths), labels=numbers, classes=classes, notes=notes)


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))


def _images(root: Path, *, deep: bool) -> tuple[list[Path], list[Path]]:
    """Image files and other files, sorted; hidden ones are passed over."""
    found = sorted(path for path in (root.rglob("*") if deep else root.iterdir()) if path.is_file())
    seen = [path for path in found if not any(part.startswith(".") for part in path.relative_to(root).parts)]
    images = [path for path in seen if path.suffix.lower() in SUFFIXES]
    return images, [path for path in seen if path.suffix.lower() not in SUFFIXES]


def _keys(paths: Sequence[Path]) -> list[bytes]:
    with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
        return list(pool.map(_key, paths))


def _key(path: Path) -> bytes:
    """Hash of a file's bytes, after its header was found to be that of an 8-bit image."""
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            mode = image.mode
    except _DECODE_ERRORS as err:
        raise _unreadable(path, err) from err
    if mode[0] in "IF":
        raise UserError(
            f"{path}: expected 8 bits per channel, got an image of mode {mode}.",
            hint="convert it; cutting the values off here would silently change the picture",
        )
    return hashlib.sha256(data).digest()


def _unreadable(path: Path, err: BaseException) -> UserError:
    return UserError(f"{path}: cannot be read as an image ({err}).", hint="remove or replace the file")


def _note(root: Path, strangers: Sequence[Path]) -> tuple[str, ...]:
    if not strangers:
        return ()
    return (f"{root.name}: {len(strangers)} files that are not images were left alone ({strangers[0].name} ...)",)


def _numeric_note(names: tuple[str, ...]) -> tuple[str, ...]:
    if not all(name.isdigit() for name in names) or sorted(names, key=int) == list(names):
        return ()
    order = ", ".join(names[:3])
    return (f"class folders are numbers and were ordered as text ({order} ...), as torchvision's ImageFolder does",)
