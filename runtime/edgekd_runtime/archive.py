"""Reads `model.edgekd`, a zip file from anywhere, without trusting it: names, sizes and kinds are checked before bytes.

Nothing is unpacked here. A member is read into memory under a limit, and its digest is checked by `bundle.py`.
"""

from __future__ import annotations

import itertools
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

from edgekd_runtime.errors import BundleError

MAX_FILES = 1001
"""A thousand, and the manifest."""
MAX_FILE_BYTES = MAX_TOTAL_BYTES = 1900 << 20
MAX_RATIO = 200
"""Most that a member may grow by; weights compress by 1.1 and JSON by 20."""
RATIO_FREE_BYTES = 1 << 20
"""Members below this size may grow by any factor: they can do no harm."""
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x1
_CHUNK = 1 << 20
_HEADER_BYTES = 30
"""Of the header before a member's name and data."""
_END_BYTES = 22
"""Of the end of the directory, without a comment."""


class Archive:
    """An opened zip file whose directory was found to be safe.

    Args:
        path: The file.

    Raises:
        BundleError: Not a zip file, cut off, or with a member that is unsafe.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except FileNotFoundError as err:
            raise BundleError(f"{path}: there is no such file.") from err
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as err:
            raise BundleError(f"{path} cannot be read as a bundle: {err}.", "copy it again; it may be cut off") from err
        try:
            self._members = _checked(self._zip.infolist(), path)
            _require_alone(self._zip, path)
        except BundleError:
            self._zip.close()
            raise

    def names(self) -> set[str]:
        """Of all members, relative POSIX paths."""
        return set(self._members)

    def read(self, name: str) -> bytes:
        """The bytes of a member, never more than its directory entry announced.

        Raises:
            BundleError: Damaged, or larger than announced.
        """
        return b"".join(self.chunks(name))

    def chunks(self, name: str) -> Iterator[bytes]:
        """The bytes of a member, in pieces, never more than its directory entry announced.

        Raises:
            BundleError: As for `read`.
        """
        entry, seen = self._members[name], 0
        try:
            with self._zip.open(entry) as member:
                while seen <= entry.file_size and (chunk := member.read(_CHUNK)):
                    seen += len(chunk)
                    yield chunk
        except Exception as err:  # zlib, struct and zipfile raise half a dozen kinds for damaged data
            raise BundleError(f"{self._path}: {name} is damaged ({err}).", "copy the bundle again") from err
        if seen != entry.file_size:
            raise BundleError(f"{self._path}: {name} has another size than the archive announces.")

    def close(self) -> None:
        """Closes the file."""
        self._zip.close()


def safe_name(name: str) -> bool:
    """Whether a name is a plain relative POSIX path that stays inside its folder on every system."""
    parts = name.split("/")
    plain = all(part not in ("", ".", "..") and not part.endswith((".", " ")) for part in parts)
    return plain and not any(sign in name for sign in '\\:*?"<>|') and name.isprintable() and len(name) <= 512


def _checked(entries: list[zipfile.ZipInfo], path: Path) -> dict[str, zipfile.ZipInfo]:
    if len(entries) > MAX_FILES:
        raise BundleError(f"{path}: {len(entries)} files are announced, at most {MAX_FILES} are read.")
    found: dict[str, zipfile.ZipInfo] = {}
    seen: set[str] = set()
    for entry in entries:
        if entry.is_dir() and entry.file_size == 0 and safe_name(entry.filename.rstrip("/")):
            continue
        reason = _unsafe(entry)
        if reason is None and entry.filename.casefold() in seen:
            reason = "is there twice"
        if reason is not None:
            raise BundleError(
                f"{path}: the member {entry.filename!r} {reason}.", "the file was not written by edgekd; do not use it"
            )
        seen.add(entry.filename.casefold())
        found[entry.filename] = entry
    _require_apart(entries, path)
    total = sum(entry.file_size for entry in found.values())
    if total > MAX_TOTAL_BYTES:
        raise BundleError(f"{path}: {total} bytes when unpacked, at most {MAX_TOTAL_BYTES} are read.")
    return found


def _require_apart(entries: list[zipfile.ZipInfo], path: Path) -> None:
    """Refuses members that share bytes: the same data, announced a thousand times, unfolds into terabytes."""
    ordered = sorted(entries, key=lambda entry: entry.header_offset)
    for one, after in itertools.pairwise(ordered):
        if one.header_offset + _HEADER_BYTES + len(one.orig_filename) + one.compress_size > after.header_offset:
            raise BundleError(f"{path}: {one.filename} and {after.filename} overlap, as in a zip bomb.")


def _require_alone(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuses a file that is something else besides: a program with a zip behind it, or a zip with more behind it."""
    first = min((entry.header_offset for entry in archive.infolist()), default=0)
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - _END_BYTES))
        ends = stream.read(4) == b"PK\x05\x06"
    if first != 0 or archive.comment or not ends:
        raise BundleError(
            f"{path} has bytes before or behind the archive that belong to no file.",
            "copy it again; if that does not help, do not use it",
        )


def _unsafe(entry: zipfile.ZipInfo) -> str | None:
    """Why a member is not read, a clause; None when it may be."""
    mode = entry.external_attr >> 16
    if not safe_name(entry.filename):
        return "would be written outside its folder, or has a name that some system does not take"
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        return "is not a plain file"
    if mode & 0o111:
        return "is marked as executable"
    if entry.flag_bits & _ENCRYPTED or entry.compress_type not in _METHODS:
        return "is encrypted or compressed in an unusual way"
    if entry.file_size > MAX_FILE_BYTES:
        return f"has {entry.file_size} bytes, at most {MAX_FILE_BYTES} are read"
    if entry.file_size > RATIO_FREE_BYTES and entry.file_size > MAX_RATIO * max(1, entry.compress_size):
        return f"grows by more than {MAX_RATIO} times when it is unpacked, as a zip bomb does"
    return None
