"""A package as one file, `model.edgekd`: a zip of exactly its files, and a reader that believes nothing it says.

Files are stored, not deflated: weights hardly shrink, the bytes do not depend on a version of zlib, and a reader may
map a model into memory. Names are sorted behind the manifest, times and permissions are fixed; equal packages give
equal files. A zip from elsewhere is read too, deflated or not, when it holds exactly one package and nothing beside it.

A zip says everything twice and can be made to overlap, to unfold into terabytes, to hide files between others or to
write outside its folder (D. Fifield, A better zip bomb, WOOT 2019). So sizes are limited before a byte is unpacked,
entries must fill the file without a gap, and every entry must be listed, with its digest, in the manifest.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from edgekd.core.blobs import disk_errors
from edgekd.core.digest import Digest, file_digest
from edgekd.errors import UserError
from edgekd.export.manifest import (
    MANIFEST_FILE,
    MOST_FILES,
    MOST_MANIFEST_BYTES,
    Manifest,
    check_paths,
    manifest_from_bytes,
)
from edgekd.export.package import Package, package_folder, verified_package

SUFFIX = ".edgekd"
MOST_BYTES = 1_900 << 20
"""Of all files together, unpacked. A model for an edge device is far below it, and a zip needs no 64-bit sizes."""
MOST_RATIO = 200
"""Unpacked to packed size of one file, from a size on at which it matters; weights reach 2."""
RATIO_FROM_BYTES = 1 << 20

_EPOCH = (1980, 1, 1, 0, 0, 0)
_CHUNK = 1 << 20
_END = struct.Struct("<4s4H2LH")
_LOCAL = struct.Struct("<4s5H3L2H")
_MOST_DIRECTORY_BYTES = 4 << 20
_UTF8, _DEFLATE_EFFORT = 0x800, 0x6
_ANEW = "copy it again, or make it again with edgekd package"


def is_packed(path: Path) -> bool:
    """Whether the path names a package in one file."""
    return path.suffix == SUFFIX and not path.is_dir()


def pack(package: Package, out: Path) -> Digest:
    """Writes a package as one file and returns the digest of that file; it appears whole or not at all.

    Args:
        package: Verified.
        out: Ends in `.edgekd`; an earlier file there is replaced.

    Raises:
        UserError: Another suffix, a folder in its place, a package too large, or one that changed meanwhile.
    """
    if out.suffix != SUFFIX:
        raise UserError(f"A package in one file ends in {SUFFIX}, and {out} does not.", hint=f"-o {out.stem}{SUFFIX}")
    if out.is_dir():
        raise UserError(f"{out} is a folder.", hint="choose another name with -o")
    names = [MANIFEST_FILE, *sorted(package.manifest.files)]
    size = sum((package.folder / name).stat().st_size for name in names)
    if size > MOST_BYTES:
        raise UserError(f"{package.folder} holds {size:,} bytes; one file takes up to {MOST_BYTES:,}.")
    wanted = {**package.manifest.files, MANIFEST_FILE: package.digest}
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        handle, made = tempfile.mkstemp(prefix=".package-", dir=out.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED, allowZip64=False) as archive:
                    for name in names:
                        _add(archive, package.folder / name, name, Digest(wanted[name]))
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(made, 0o644)
            os.replace(made, out)
        except BaseException:
            Path(made).unlink(missing_ok=True)
            raise
    return file_digest(out)


def unpack(path: Path, folder: Path) -> None:
    """Unpacks a package into an empty folder; every file has the digest that the manifest gives.

    Args:
        path: The file.
        folder: Exists and is empty. When this raises, what lies in it is worth nothing.

    Raises:
        UserError: Not a zip, cut off, changed, with anything before, between or behind its entries, encrypted, too
            large, of another compression, or not exactly the files of its manifest.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            count = _checked_end(path, stream, size)
            with zipfile.ZipFile(stream) as archive:
                entries = _checked_entries(path, archive, stream, count)
                manifest = _manifest(path, archive, entries)
                with disk_errors(folder):
                    for name, entry in entries.items():
                        digest = None if name == MANIFEST_FILE else manifest.files[name]
                        _extract(path, archive, entry, folder / name, digest)
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, NotImplementedError, UnicodeDecodeError) as err:
        raise UserError(f"{path} is damaged: {err}.", hint=_ANEW) from err
    except OSError as err:
        raise UserError(f"{path} cannot be unpacked: {err.strerror or err}.") from err


@contextmanager
def open_package(path: Path, expected: str | None = None) -> Iterator[Package]:
    """A verified package, in whichever form it comes; one that is unpacked is gone when the block ends.

    Args:
        path: A file that `pack` wrote, the folder of a package, or the folder of a run that has one in `bundle/`.
        expected: Digest that its receiver was told; None expects nothing.

    Raises:
        UserError: Not a package, another one than expected, or one that was changed.
    """
    if not path.exists():
        raise UserError(f"No such file or folder: {path}.", hint="give the folder of a run or a package, or .edgekd")
    if not is_packed(path):
        yield verified_package(package_folder(path), expected)
        return
    # Beside the file is the user's place; the store takes what is kept of it, file by file.
    with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
        folder = Path(scratch) / path.stem
        folder.mkdir()
        unpack(path, folder)
        yield verified_package(folder, expected)


def _add(archive: zipfile.ZipFile, source: Path, name: str, wanted: Digest) -> None:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.create_system, entry.external_attr = 3, (stat.S_IFREG | 0o644) << 16  # the same on every system
    entry.file_size = source.stat().st_size
    hasher = hashlib.sha256()
    with source.open("rb") as stream, archive.open(entry, "w") as out:
        while chunk := stream.read(_CHUNK):
            hasher.update(chunk)
            out.write(chunk)
    if hasher.hexdigest() != wanted:
        raise UserError(f"{source} was changed while it was packed.", hint="pack it again")


def _checked_end(path: Path, stream: BinaryIO, size: int) -> int:
    """The number of entries, from a file that starts with an entry and ends with the end of its directory."""
    if size < _END.size or _at(stream, 0, 4) not in (b"PK\x03\x04", b"PK\x05\x06"):
        raise UserError(f"{path} is not a package: it does not start as a zip does.", hint=_ANEW)
    last = _at(stream, size - _END.size, _END.size)
    sign, disk, first_disk, here, count, length, start, comment = _END.unpack(last)
    if sign != b"PK\x05\x06" or comment:
        raise UserError(f"{path} is cut off, or has something behind its end.", hint=_ANEW)
    if disk or first_disk or here != count or start + length != size - _END.size:
        raise UserError(f"{path} is damaged: its directory is not where its end says.", hint=_ANEW)
    if count > MOST_FILES + 1 or length > _MOST_DIRECTORY_BYTES:
        raise UserError(f"{path} holds {count:,} files, the limit is {MOST_FILES:,}.", hint=_ANEW)
    return int(count)


def _checked_entries(path: Path, archive: zipfile.ZipFile, stream: BinaryIO, count: int) -> dict[str, zipfile.ZipInfo]:
    """Entries by name, each a plain file of a size and form that is read, together filling the file."""
    entries = archive.infolist()
    if len(entries) != count:
        raise UserError(f"{path} is damaged: it has {len(entries)} entries and says {count}.", hint=_ANEW)
    for entry in entries:
        if (why := _unreadable(entry)) is not None:
            raise UserError(f"{path}: the entry {entry.orig_filename!r} {why}.", hint=_ANEW)
    if (total := sum(entry.file_size for entry in entries)) > MOST_BYTES:
        raise UserError(f"{path} unpacks to {total:,} bytes, the limit is {MOST_BYTES:,}: it may be a zip bomb.")
    found = {entry.filename: entry for entry in entries}
    if len(found) < count:
        raise UserError(f"{path} holds two entries of one name.", hint=_ANEW)
    check_paths([name for name in found if name != MANIFEST_FILE], str(path))
    position = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset != position:
            raise UserError(f"{path}: entries overlap, or something lies between them: it may be a zip bomb.")
        position += _span(stream, entry)
    if position != archive.start_dir:
        raise UserError(f"{path}: something lies between its entries and its directory.", hint=_ANEW)
    return found


def _unreadable(entry: zipfile.ZipInfo) -> str | None:
    """Why an entry is not read, as a clause; None when it is."""
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if not entry.filename or entry.filename.endswith("/") or kind not in (0, stat.S_IFREG):
        return "is a link, a folder or a device, and a package holds only files"
    if entry.flag_bits & 0x1:
        return "is encrypted"
    if entry.flag_bits & ~(_UTF8 | _DEFLATE_EFFORT):
        return f"is in a form that is not read (flags {entry.flag_bits:#x})"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"is compressed in a way that is not read (method {entry.compress_type})"
    if entry.filename != entry.orig_filename:
        return "has a zero byte or a backslash in its name"
    if entry.compress_type == zipfile.ZIP_STORED and entry.compress_size != entry.file_size:
        return "has two sizes"
    if entry.file_size > max(RATIO_FROM_BYTES, MOST_RATIO * entry.compress_size):
        return f"unpacks to more than {MOST_RATIO} times its size: it may be a zip bomb"
    if entry.filename == MANIFEST_FILE and entry.file_size > MOST_MANIFEST_BYTES:
        return f"is larger than {MOST_MANIFEST_BYTES:,} bytes"
    return None


def _span(stream: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Bytes from an entry's own header to the end of its data, where that header says what the directory says."""
    data = _at(stream, entry.header_offset, _LOCAL.size)
    sign, _, flags, method, _, _, crc, packed, size, name, extra = _LOCAL.unpack(data)
    given = (sign, flags, method, crc, packed, size)
    wanted = (b"PK\x03\x04", entry.flag_bits, entry.compress_type, entry.CRC, entry.compress_size, entry.file_size)
    if given != wanted:
        raise zipfile.BadZipFile(f"the entry {entry.filename!r} and the directory disagree")
    return _LOCAL.size + int(name) + int(extra) + entry.compress_size


def _at(stream: BinaryIO, offset: int, length: int) -> bytes:
    stream.seek(offset)
    return stream.read(length)


def _manifest(path: Path, archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo]) -> Manifest:
    """The manifest, which lists exactly the other entries."""
    if MANIFEST_FILE not in entries:
        raise UserError(f"{path} is not a package: it has no {MANIFEST_FILE}.")
    manifest = manifest_from_bytes(archive.read(entries[MANIFEST_FILE]), str(path))
    listed = set(manifest.files) | {MANIFEST_FILE}
    if missing := sorted(listed - set(entries)):
        raise UserError(f"{path}: the file {missing[0]} is missing.", hint=_ANEW)
    if strays := sorted(set(entries) - listed):
        raise UserError(f"{path} holds {strays[0]!r}, which its manifest does not list.", hint=_ANEW)
    return manifest


def _extract(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, place: Path, wanted: Digest | None) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    hasher, left = hashlib.sha256(), entry.file_size
    with archive.open(entry) as stream, place.open("xb") as out:
        while chunk := stream.read(_CHUNK):
            left -= len(chunk)
            if left < 0:
                raise UserError(f"{path}: {entry.filename} is larger than it says: it may be a zip bomb.")
            hasher.update(chunk)
            out.write(chunk)
    if left:
        raise UserError(f"{path}: {entry.filename} is shorter than it says.", hint=_ANEW)
    if wanted is not None and hasher.hexdigest() != wanted:
        raise UserError(f"{path}: {entry.filename} was changed: its SHA-256 is not the manifest's.", hint=_ANEW)
