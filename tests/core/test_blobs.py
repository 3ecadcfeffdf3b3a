from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from edgekd.core.blobs import FolderBlobs, disk_errors
from edgekd.core.digest import digest, file_digest
from edgekd.errors import UserError


@pytest.fixture
def blobs(tmp_path: Path) -> FolderBlobs:
    return FolderBlobs(tmp_path / "blobs")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"bytes" * 1000)
    return path


def test_a_file_is_kept_by_its_content_and_read_only(blobs: FolderBlobs, file: Path) -> None:
    found = blobs.add(file)
    assert found == file_digest(file)
    assert blobs.path(found).read_bytes() == file.read_bytes()
    assert blobs.path(found).stat().st_mode & 0o777 == 0o444
    file.unlink()
    assert blobs.has(found)


def test_the_same_bytes_are_kept_once(blobs: FolderBlobs, file: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(file.read_bytes())
    assert blobs.add(file) == blobs.add(tmp_path / "other")
    assert len([path for path in blobs.root.rglob("*") if path.is_file()]) == 1


def test_a_damaged_blob_is_repaired_by_adding_it_again(blobs: FolderBlobs, file: Path) -> None:
    place = blobs.path(blobs.add(file))
    place.chmod(0o644)
    place.write_bytes(b"cut")
    assert blobs.path(blobs.add(file)).read_bytes() == file.read_bytes()


def test_a_missing_blob_is_said_with_what_to_do(blobs: FolderBlobs) -> None:
    with pytest.raises(UserError, match="has no blob") as caught:
        blobs.path(digest("nothing"))
    assert caught.value.hint == "run again with --rebuild"
    assert not blobs.has(digest("nothing"))


def test_an_interrupted_copy_leaves_nothing(blobs: FolderBlobs, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        blobs.add(file)
    assert [path for path in blobs.root.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "No space left on the disk while writing"),
        (errno.EDQUOT, "No space left on the disk while writing"),
        (errno.EROFS, "Cannot write"),
        (errno.EACCES, "Cannot write"),
    ],
)
def test_a_disk_that_takes_nothing_is_one_clear_error(
    blobs: FolderBlobs, file: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    def refuse(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(UserError, match=words) as caught:
        blobs.add(file)
    assert "--store" in str(caught.value.hint)
    assert [path for path in blobs.root.rglob("*") if path.is_file()] == []


def test_other_errors_pass_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), disk_errors(tmp_path):
        (tmp_path / "missing").read_text()
