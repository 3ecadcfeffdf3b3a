from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from onnx import TensorProto, helper, save
from safetensors.torch import save_file
from torch import nn

from edgekd.errors import UserError
from edgekd.nn.sniff import ModelFileKind, model_kind
from tests.nn.zoo import exported


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.mark,))


def onnx_file(path: Path) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    save(helper.make_model(helper.make_graph([helper.make_node("Relu", ["x"], ["x2"])], "g", [value], [])), path)


def torchscript_file(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), path)


WRITERS: dict[str, tuple[ModelFileKind, Callable[[Path], None]]] = {
    "weights": (ModelFileKind.STATE_DICT, lambda path: torch.save(nn.Linear(2, 2).state_dict(), path)),
    "checkpoint": (ModelFileKind.STATE_DICT, lambda path: torch.save({"model": {"a": torch.zeros(1)}, "n": 3}, path)),
    "old weights": (
        ModelFileKind.STATE_DICT,
        lambda path: torch.save(nn.Linear(2, 2).state_dict(), path, _use_new_zipfile_serialization=False),
    ),
    "module": (ModelFileKind.PICKLED_MODULE, lambda path: torch.save(nn.Linear(2, 2), path)),
    "old module": (
        ModelFileKind.PICKLED_MODULE,
        lambda path: torch.save(nn.Linear(2, 2), path, _use_new_zipfile_serialization=False),
    ),
    "bare pickle": (
        ModelFileKind.PICKLED_MODULE,
        lambda path: path.write_bytes(pickle.dumps(nn.Linear(2, 2))) and None,
    ),
    "safetensors": (ModelFileKind.SAFETENSORS, lambda path: save_file({"a": torch.zeros(3)}, path)),
    "program": (ModelFileKind.PROGRAM, lambda path: torch.export.save(exported(nn.ReLU(), torch.zeros(2, 3)), path)),
    "torchscript": (ModelFileKind.TORCHSCRIPT, torchscript_file),
    "onnx": (ModelFileKind.ONNX, onnx_file),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WRITERS)
def test_a_file_is_known_by_its_content_under_any_name(name: str, tmp_path: Path) -> None:
    kind, write = WRITERS[name]
    path = tmp_path / "model.bin"
    write(path)
    assert model_kind(path) is kind


@pytest.mark.parametrize("zipped", [True, False])
def test_looking_at_a_file_runs_nothing_in_it(zipped: bool, tmp_path: Path) -> None:
    path, mark = tmp_path / "model.pt", tmp_path / "ran"
    torch.save({"w": Bomb(mark)}, path, _use_new_zipfile_serialization=zipped)
    assert model_kind(path) is ModelFileKind.PICKLED_MODULE
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"hello, this is a long enough text", "of an unknown format"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"\x1c\x00\x00\x00TFL3", "a TensorFlow Lite model"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"<!DOCTYPE html>", "the download failed"),
        (b"\xff\x00\x00\x00\x00\x00\x00\x00{", "of an unknown format"),
        (b"PK\x03\x04 cut off", "is a damaged archive"),
    ],
)
def test_what_is_no_model_is_refused_with_what_it_is(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        model_kind(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_an_archive_of_something_else_is_no_model(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(UserError, match="of an unknown format"):
        model_kind(tmp_path / "model.pt")


def test_an_archive_with_a_broken_pickle_is_damaged(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("model/data.pkl", b"\x80\x02c broken")
    with pytest.raises(UserError, match="is a damaged archive"):
        model_kind(tmp_path / "model.pt")


def test_a_wrong_path_lists_the_models_beside_it(tmp_path: Path) -> None:
    (tmp_path / "teacher.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"No such model file: .*techer\.pt(.|\n)*holds: teacher\.pt"):
        model_kind(tmp_path / "techer.pt")


def test_a_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        model_kind(tmp_path)
