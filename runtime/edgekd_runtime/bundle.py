"""A bundle on disk, a folder or `model.edgekd`: whole and unaltered, or it does not open.

Every file that the manifest lists is compared with its SHA-256 when a bundle opens. What is read later is compared
again, on the very bytes that are handed on, so that a file which changes in between is not used. A digest shows that
nothing was damaged or swapped since the bundle was written; who wrote it, it does not show.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from edgekd_runtime.archive import Archive, safe_name
from edgekd_runtime.deploy import DEPLOY_FILE, Deploy, parse_deploy
from edgekd_runtime.errors import BundleError

MANIFEST_FILE = "manifest.json"
SCHEMA_VERSION = 2
RUN_FOLDER = "bundle"
MAX_JSON_BYTES = 64 << 20
_CHUNK = 1 << 20


class Bundle:
    """An opened bundle; a context manager.

    Args:
        path: The folder of a bundle, `model.edgekd`, or the folder of a run of edgekd, which has one in `bundle/`.

    Attributes:
        path: Of the bundle itself.
        digest: SHA-256 of the manifest, which stands for every byte of the bundle.
        files: SHA-256 by relative path, of every file but the manifest.
        deploy: What is in it.

    Raises:
        BundleError: Missing, cut off, altered, unsafe or of another format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path / RUN_FOLDER if (path / RUN_FOLDER).is_dir() else path
        self._archive = None if self.path.is_dir() else Archive(path)
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        try:
            self.files = self._manifest()
            for name, wanted in self.files.items():
                self._verify(name, wanted)
            if DEPLOY_FILE not in self.files:
                raise BundleError(
                    f"{path} has no {DEPLOY_FILE}.",
                    "there is nothing to run in it: weights alone, or a bundle of an older edgekd; export it again",
                )
            self.deploy: Deploy = parse_deploy(self.json(DEPLOY_FILE), f"{path}: {DEPLOY_FILE}")
            self._require_files()
        except BaseException:
            self.close()
            raise

    def read(self, name: str) -> bytes:
        """The bytes of a file, compared with the manifest.

        Raises:
            BundleError: Not listed, missing or altered.
        """
        content = self._content(name)
        self._compare(name, hashlib.sha256(content).hexdigest(), self._listed(name))
        return content

    def json(self, name: str) -> Any:
        """The content of a JSON file.

        Raises:
            BundleError: As for `read`; or not JSON.
        """
        return self._parsed(name, self.read(name))

    def file(self, name: str) -> Path:
        """A path to a file, for libraries that open files themselves: a copy of its own, which lasts until `close`.

        Raises:
            BundleError: As for `read`.
        """
        content = self.read(name)
        if self._scratch is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="edgekd-")
        copy = Path(self._scratch.name) / name
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(content)
        return copy

    def close(self) -> None:
        """Closes the archive and removes copies; idempotent."""
        if self._archive is not None:
            self._archive.close()
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    def __enter__(self) -> Bundle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _manifest(self) -> dict[str, str]:
        if not self._has(MANIFEST_FILE):
            raise BundleError(f"{self.path} is not a bundle: it has no {MANIFEST_FILE}.")
        content = self._content(MANIFEST_FILE)
        self.digest = hashlib.sha256(content).hexdigest()
        data = self._parsed(MANIFEST_FILE, content)
        version = data.get("schema_version") if isinstance(data, dict) else None
        if version != SCHEMA_VERSION:
            raise BundleError(
                f"{self.path}: bundle schema {version!r}, this version reads {SCHEMA_VERSION}.",
                "write it again with the edgekd that belongs to this edgekd-runtime",
            )
        files = data.get("files")
        if not isinstance(files, dict) or not all(isinstance(value, str) for value in files.values()):
            raise BundleError(f"{self.path}: {MANIFEST_FILE} does not list files.")
        unsafe = [name for name in files if not safe_name(name)]
        if unsafe:
            raise BundleError(f"{self.path}: the manifest lists {unsafe[0]!r}, which is not a plain relative path.")
        if self._archive is not None:
            strangers = sorted(self._archive.names() - set(files) - {MANIFEST_FILE})
            if strangers:
                raise BundleError(f"{self.path}: {strangers[0]} is in the archive and not in its manifest.")
        return files

    def _require_files(self) -> None:
        for entry in self.deploy.engines:
            named = [*entry.files.values(), entry.fingerprint, entry.timing_cache]
            missing = [name for name in named if name is not None and name not in self.files]
            if missing:
                raise BundleError(
                    f"{self.path}: the engine {entry.name} names {missing[0]}, which is not in the manifest."
                )

    def _verify(self, name: str, wanted: str) -> None:
        """Compares a file with its digest without holding it in memory."""
        digest = hashlib.sha256()
        for chunk in self._chunks(name):
            digest.update(chunk)
        self._compare(name, digest.hexdigest(), wanted)

    def _chunks(self, name: str) -> Iterator[bytes]:
        if self._archive is not None:
            if not self._has(name):
                raise self._missing(name, None)
            yield from self._archive.chunks(name)
            return
        try:
            with self._inside(name).open("rb") as stream:
                while chunk := stream.read(_CHUNK):
                    yield chunk
        except OSError as err:
            raise self._missing(name, err) from err

    def _content(self, name: str) -> bytes:
        return b"".join(self._chunks(name))

    def _inside(self, name: str) -> Path:
        """The path of a file that really lies in the folder: a link to elsewhere is not followed."""
        path = self.path / name
        if not path.resolve().is_relative_to(self.path.resolve()):
            raise BundleError(f"{path} is a link that leaves the bundle.")
        return path

    def _has(self, name: str) -> bool:
        return name in self._archive.names() if self._archive is not None else (self.path / name).is_file()

    def _listed(self, name: str) -> str:
        if name not in self.files:
            raise BundleError(f"{self.path}: {name} is not in the manifest.")
        return self.files[name]

    def _compare(self, name: str, found: str, wanted: str) -> None:
        if found != wanted:
            raise BundleError(
                f"{self.path}: {name} was altered or cut off: its SHA-256 is {found[:12]}..., the manifest has "
                f"{wanted[:12]}....",
                "copy the bundle again, or write it again",
            )

    def _parsed(self, name: str, content: bytes) -> Any:
        if len(content) > MAX_JSON_BYTES:
            raise BundleError(f"{self.path}: {name} has {len(content)} bytes, at most {MAX_JSON_BYTES} are read.")
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as err:
            raise BundleError(f"{self.path}: {name} is not valid JSON ({err}).") from err

    def _missing(self, name: str, err: OSError | None) -> BundleError:
        why = "" if err is None else f" ({err.strerror or err})"
        return BundleError(f"{self.path}: {name} is missing{why}.", "copy the bundle again, or write it again")
