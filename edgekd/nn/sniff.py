"""What a model file is, judged by its content and never by its name, and without running anything inside it."""

from __future__ import annotations

import io
import json
import pickle
import re
import warnings
import zipfile
from enum import StrEnum
from pathlib import Path, PurePosixPath

import torch

from edgekd.errors import UserError


class ModelFileKind(StrEnum):
    """The kinds of files that hold a model."""

    PROGRAM = "torch.export program"
    """`torch.export.save`: graph and weights."""
    STATE_DICT = "state dict"
    """`torch.save` of tensors in dicts: weights only, readable without trust."""
    SAFETENSORS = "safetensors"
    """Weights only."""
    PICKLED_MODULE = "pickle"
    """`torch.save(model)` or any pickle that names classes: reading it runs code."""
    TORCHSCRIPT = "TorchScript archive"
    """`torch.jit.save`: graph and weights, of a compiler that is no longer developed."""
    ONNX = "ONNX graph"
    """No PyTorch form."""


# A protobuf whose field 1 is a small version number, as every exporter writes it, followed by another field of a model.
_ONNX = re.compile(rb"\x08[\x01-\x20][\x12\x1a\x22\x28\x32\x3a\x42]")
_FOREIGN = (
    (0, b"\x89HDF", "an HDF5 file, of Keras for example"),
    (4, b"TFL3", "a TensorFlow Lite model"),
    (0, b"version https://git-lfs", "a Git LFS pointer: the model itself was not downloaded (git lfs pull)"),
    (0, b"\x1f\x8b", "a gzip archive: unpack it first"),
    (0, b"<", "a text file, a web page perhaps: the download failed"),
)


def model_kind(path: Path) -> ModelFileKind:
    """The kind of a model file.

    Raises:
        UserError: No such file, an empty or damaged one, or one that holds no model that edgekd reads.
    """
    if not path.exists():
        near = sorted(found.name for found in path.parent.glob("*.pt*"))[:8] if path.parent.is_dir() else []
        raise UserError(
            f"No such model file: {path}.", hint=f"{path.parent} holds: {', '.join(near)}" if near else "check the path"
        )
    if path.is_dir():
        raise UserError(f"{path} is a folder; expected a model file, such as model.pt.")
    with path.open("rb") as stream:
        head = stream.read(64)
    kind = _kind_of_zip(path) if head.startswith(b"PK\x03\x04") else _kind_of_bytes(path, head)
    if kind is None:
        found = next(
            (what for place, magic, what in _FOREIGN if head[place:].startswith(magic)), "of an unknown format"
        )
        raise UserError(
            f"{path} is {found if head else 'empty'}; expected a torch.export program (.pt2) or a state dict (.pt, "
            ".safetensors).",
            hint="save the model with torch.save(model.state_dict(), path) or torch.export.save(program, path)",
        )
    return kind


def _kind_of_zip(path: Path) -> ModelFileKind | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as err:
        raise UserError(f"{path} is a damaged archive: {err}.", hint="it may be cut off: copy it again") from err
    inner = {str(PurePosixPath(*PurePosixPath(name).parts[1:])) for name in names}
    if any(name.startswith("models/") for name in inner) or "serialized_exported_program.json" in names:
        return ModelFileKind.PROGRAM
    if "constants.pkl" in inner:
        return ModelFileKind.TORCHSCRIPT
    if "data.pkl" in inner:
        return _kind_of_archived_pickle(path)
    return None


def _kind_of_archived_pickle(path: Path) -> ModelFileKind:
    try:
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (RuntimeError, ValueError, LookupError, EOFError, pickle.UnpicklingError) as err:
        raise UserError(f"{path} is a damaged archive: {err}.", hint="it may be cut off: copy it again") from err
    return ModelFileKind.PICKLED_MODULE if unsafe else ModelFileKind.STATE_DICT


def _kind_of_bytes(path: Path, head: bytes) -> ModelFileKind | None:
    if head[:1] == b"\x80":
        return _kind_of_pickle(path)
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and 8 + length <= path.stat().st_size:
        with path.open("rb") as stream:
            stream.seek(8)
            return ModelFileKind.SAFETENSORS if _is_json(stream.read(length)) else None
    return ModelFileKind.ONNX if _ONNX.match(head) else None


def _kind_of_pickle(path: Path) -> ModelFileKind:
    """The format of torch before 1.6, or a bare pickle; `weights_only` reads the opcodes and imports nothing."""
    try:
        with warnings.catch_warnings():
            # Of an unusual protocol; what cannot be read is no state dict.
            warnings.simplefilter("ignore")
            torch.load(path, map_location="meta", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError):
        return ModelFileKind.PICKLED_MODULE
    return ModelFileKind.STATE_DICT


def _is_json(data: bytes) -> bool:
    try:
        json.load(io.BytesIO(data))
    except ValueError:
        return False
    return True
