"""`manifest.json`: which files a package holds, by path and digest, and the proof that they are those files.

The manifest is what is trusted; whoever knows its digest knows every byte of the package. A name in it comes from
outside and becomes a path on this machine, so names are checked before any file is touched. Files that lie in the
folder and not in the manifest are not part of the package and are never read.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from pydantic import Field

from edgekd.core.digest import Digest, file_digest, is_digest
from edgekd.core.schema import Schema
from edgekd.errors import UserError

MANIFEST_FILE = "manifest.json"
BUNDLE_FILE = "bundle.json"
PACKAGE_SCHEMA_VERSION = 2
READABLE = (1, 2)
"""Version 1 had no sub-folders and no deploy.json; it is read and no longer written."""

MOST_FILES = 1_000
LONGEST_PATH = 200
DEEPEST = 8
MOST_MANIFEST_BYTES = 4 << 20
AGAIN = "write the package again, or copy it again"


class Manifest(Schema):
    """What is in a package.

    Attributes:
        files: SHA-256 by relative POSIX path, of every file but the manifest.
        versions: Of the tools that made it.
        facts: Where it came from: the run, the node, the data. No times and no paths: equal inputs give equal bytes.
    """

    schema_version: int = PACKAGE_SCHEMA_VERSION
    files: dict[str, Digest]
    versions: dict[str, str] = Field(default_factory=dict)
    facts: dict[str, str] = Field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The file's content; equal manifests give equal bytes."""
        return (json.dumps(self.plain(), indent=2, sort_keys=True) + "\n").encode()


def manifest_from_bytes(data: bytes, where: str) -> Manifest:
    """The manifest, its version and its names checked; no file was looked at yet.

    Raises:
        UserError: Not a manifest, of another version, or with a name that must not become a path.
    """
    try:
        plain = json.loads(data.decode("utf-8"), object_pairs_hook=_without_twins)
    except (ValueError, RecursionError) as err:
        raise UserError(f"{where}: {MANIFEST_FILE} is not valid JSON ({err}).", hint=AGAIN) from err
    version = plain.get("schema_version") if isinstance(plain, dict) else None
    if isinstance(plain, dict) and version not in READABLE:
        raise UserError(
            f"{where}: package schema {version!r}, this edgekd reads {' and '.join(map(str, READABLE))}.",
            hint="read it with the version of edgekd that wrote it, or a newer one",
        )
    manifest = Manifest.parse(plain, f"{where}: {MANIFEST_FILE}")
    check_paths(manifest.files, where, folders=manifest.schema_version > 1)
    for name, found in manifest.files.items():
        if not is_digest(found):
            raise UserError(f"{where}: the manifest has {found!r} for {name}, which is not a SHA-256.", hint=AGAIN)
    if BUNDLE_FILE not in manifest.files:
        raise UserError(f"{where}: the manifest does not list {BUNDLE_FILE}.", hint=AGAIN)
    return manifest


def check_paths(paths: Iterable[str], where: str, *, folders: bool = True) -> None:
    """Refuses names that would lead out of the package, or to each other, on any system.

    Args:
        paths: Relative POSIX paths.
        where: The package, for messages.
        folders: Whether sub-folders are allowed.

    Raises:
        UserError: The first such name, and why.
    """
    listed = list(paths)
    if len(listed) > MOST_FILES:
        raise UserError(f"{where}: {len(listed):,} files are listed, the limit is {MOST_FILES:,}.")
    seen: dict[str, str] = {_folded(MANIFEST_FILE): MANIFEST_FILE}
    for path in listed:
        why = _unsafe(path)
        if why is None and not folders and "/" in path:
            why = "is in a folder, which packages of schema 1 do not have"
        if why is not None:
            raise UserError(f"{where}: the manifest lists {path!r}, which {why}.", hint=AGAIN)
        twin = seen.setdefault(_folded(path), path)
        if twin != path or path == MANIFEST_FILE:
            raise UserError(f"{where}: {path!r} and {twin!r} are one file where case does not count.", hint=AGAIN)
    for path in listed:
        for parent in PurePosixPath(path).parents:
            if _folded(str(parent)) in seen:
                raise UserError(f"{where}: {str(parent)!r} is listed as a file and as a folder.", hint=AGAIN)


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Reads every file once and compares it with the manifest.

    Raises:
        UserError: A file that is missing, that was changed, or that is reached through a link.
    """
    for name, wanted in manifest.files.items():
        path = folder / name
        if link := next((p for p in _below(folder, path) if p.is_symlink()), None):
            raise UserError(f"{link} is a link, and a package holds only files of its own.", hint=AGAIN)
        if not path.is_file():
            raise UserError(f"{folder}: the file {name} is missing.", hint=AGAIN)
        found = file_digest(path)
        if found != wanted:
            raise UserError(
                f"{path} was changed: its SHA-256 is {found[:12]}..., the manifest has {wanted[:12]}....", hint=AGAIN
            )


def is_package(folder: Path) -> bool:
    """Whether the folder's manifest is one of ours, of any schema: a manifest.json alone may be anybody's."""
    try:
        found = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    listed = found.get("files") if isinstance(found, dict) else None
    return isinstance(listed, dict) and BUNDLE_FILE in listed


def check_expected(found: Digest, expected: str | None, where: str) -> None:
    """Compares a package's digest with the one that its receiver was told.

    Raises:
        UserError: Another package, or a text that is no digest.
    """
    if expected is None:
        return
    wanted = expected.lower().removeprefix("sha256:")
    if not is_digest(wanted):
        raise UserError(f"{expected!r} is not a digest: expected 64 hexadecimal digits.")
    if found != wanted:
        raise UserError(
            f"{where} is another package than expected: its digest is {found}, expected was {wanted}.",
            hint="do not deploy it; ask whoever gave you the digest which package it belongs to",
        )


def _unsafe(path: str) -> str | None:
    """Why a name must not become a path, as a clause; None when it may."""
    parts = path.split("/")
    if path.startswith("/") or (len(path) > 1 and path[1] == ":"):
        return "is an absolute path"
    if ".." in parts or "." in parts or "" in parts:
        return "is not a plain relative path"
    if any(char in '\\:*?"<>|' or unicodedata.category(char) in ("Cc", "Cf", "Cs") for char in path):
        return "holds a character that a file's name cannot have everywhere"
    if any(part.endswith((".", " ")) or part.split(".")[0].upper() in _RESERVED for part in parts):
        return "is a name that Windows reserves"
    if len(path) > LONGEST_PATH or len(parts) > DEEPEST:
        return f"is longer than {LONGEST_PATH} characters or deeper than {DEEPEST} folders"
    return None


_RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{device}{number}" for device in ("COM", "LPT") for number in range(1, 10))}


def _folded(path: str) -> str:
    """Equal for names that some file system takes for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _below(folder: Path, path: Path) -> list[Path]:
    """The path and the folders above it, up to the package's own folder, which may well be a link."""
    return [path, *(parent for parent in path.parents if folder in parent.parents)]


def _without_twins(pairs: list[tuple[str, object]]) -> Mapping[str, object]:
    """A JSON object; a key that comes twice would be read one way here and another way elsewhere."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice")
    return found
