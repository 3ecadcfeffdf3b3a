"""Content-addressed files: what a bundle's digests point to.

`FolderBlobs` is the file half of the local store. A blob appears under its name only when it is whole: it is written
to a temporary name beside it, flushed to the disk and renamed.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import Protocol

from edgekd.core.digest import Digest, file_digest
from edgekd.errors import UserError


class Blobs(Protocol):
    """Files by content."""

    def add(self, path: Path) -> Digest:
        """Keeps a copy of the file and returns its digest; adding the same bytes twice is harmless, and repairs."""

    def path(self, digest: Digest) -> Path:
        """Where the bytes lie, read-only.

        Raises:
            UserError: No such blob, with the hint to rebuild.
        """


class FolderBlobs:
    """Blobs in `root/ab/cdef...`.

    Args:
        root: Created when the first blob is added.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(self, path: Path) -> Digest:
        found = file_digest(path)
        target = self._place(found)
        if target.exists() and file_digest(target) == found:
            return found
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=".new-", dir=target.parent)
            try:
                with os.fdopen(handle, "wb") as out, path.open("rb") as source:
                    shutil.copyfileobj(source, out, 1 << 20)
                    out.flush()
                    os.fsync(out.fileno())
                os.chmod(name, 0o444)
                os.replace(name, target)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        return found

    def path(self, digest: Digest) -> Path:
        place = self._place(digest)
        if not place.exists():
            raise UserError(
                f"The store {self.root} has no blob {digest[:12]}: it was removed or the store was copied in part.",
                hint="run again with --rebuild",
            )
        return place

    def has(self, digest: Digest) -> bool:
        """Whether the blob is there."""
        return self._place(digest).exists()

    def _place(self, digest: Digest) -> Path:
        return self.root / digest[:2] / digest[2:]


class disk_errors:  # noqa: N801 - reads as a statement
    """Context manager: turns a full disk or a read-only folder into one clear `UserError`.

    Args:
        place: What was being written, named in the message.
    """

    def __init__(self, place: Path) -> None:
        self.place = place

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, err: BaseException | None, trace: object) -> None:
        if not isinstance(err, OSError):
            return
        if err.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"No space left on the disk while writing {self.place}. Nothing that was finished is lost.",
                hint="free some space, or move the store with --store, and run the same command again",
            ) from err
        if err.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise UserError(
                f"Cannot write {self.place}: {err.strerror}.", hint="choose a writable folder with -o or --store"
            ) from err


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file, its folder too, in one step: the place holds the whole of it, or what it held before.

    Raises:
        UserError: The disk is full or the folder cannot be written.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_bytes(data)
        partial.replace(path)
