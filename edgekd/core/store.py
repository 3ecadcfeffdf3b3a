"""Where results live: records by key, files by content, and scratch folders that outlive a killed run.

Only `edgekd.core.runner` and whoever brings the first bundles into a run use a store. Whatever is found in one is
checked before it is believed: a record that cannot be read, or whose files are lost or damaged, is as good as absent,
and the reader learns why.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from edgekd.core.blobs import Blobs, FolderBlobs, disk_errors
from edgekd.core.bundle import ModelBundle
from edgekd.core.digest import Digest, file_digest
from edgekd.core.lock import Holder, StoreLock
from edgekd.core.record import Record
from edgekd.core.report_io import schema_from_json
from edgekd.errors import UserError


class DamagedRecord(UserError):
    """A record is there and cannot be used; the runner goes on as if it were absent, and says so."""


class Store(Protocol):
    """Keeps what nodes made. `edgekd.testing.conformance_store` tests every promise made here."""

    @property
    def blobs(self) -> Blobs:
        """The files of all bundles."""

    def get(self, key: Digest) -> Record | None:
        """The result kept under `key`, whole: every file of its bundle is there and has the bytes it should have.

        Raises:
            DamagedRecord: There is one, but it is unreadable or a file of it is lost or damaged.
        """

    def put(self, record: Record) -> None:
        """Keeps a result under its key, in place of an earlier one. A kill leaves the old state or the new one.

        Raises:
            UserError: The disk is full or read-only.
        """

    def note(self, record: Record) -> None:
        """Remembers what a node did last, made or reused, cacheable or not; nothing is ever reused from a note."""

    def last(self, node: str) -> Record | None:
        """What `note` was told last about a node. The files of its bundle may be gone.

        Raises:
            DamagedRecord: The note is unreadable.
        """

    def scratch(self, key: Digest) -> Path:
        """The folder for unfinished work under a key; the same in every process, and not created here."""

    def lock(self) -> AbstractContextManager[Holder]:
        """Holds the store for one run.

        Raises:
            UserError: Another run holds it (on entering).
        """

    def holder(self) -> Holder | None:
        """Which run holds the store now."""


class LocalStore:
    """A store in a folder: `blobs/`, `records/`, `nodes/` (the notes), `scratch/` and `lock`.

    The folder can be copied or shared between machines; records name files by content only.

    Args:
        root: Created when something is first written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs: Blobs = FolderBlobs(root / "blobs")

    def get(self, key: Digest) -> Record | None:
        place = self._record(key)
        record = _read(place)
        if record is None:
            return None
        if record.key.digest != key:
            raise DamagedRecord(f"its record {place} belongs to another key")
        check_files(record.bundle, self.blobs)
        return record

    def put(self, record: Record) -> None:
        _write(self._record(record.key.digest), record)

    def note(self, record: Record) -> None:
        _write(self._note(record.node), record)

    def last(self, node: str) -> Record | None:
        return _read(self._note(node))

    def scratch(self, key: Digest) -> Path:
        return self.root / "scratch" / key

    def lock(self) -> AbstractContextManager[Holder]:
        return StoreLock(self.root)

    def holder(self) -> Holder | None:
        return StoreLock(self.root).holder()

    def _record(self, key: Digest) -> Path:
        return self.root / "records" / key[:2] / f"{key[2:]}.json"

    def _note(self, node: str) -> Path:
        return self.root / "nodes" / f"{node}.json"


class MemoryStore:
    """A store for tests and experiments: records in memory, files in a folder.

    Args:
        folder: For blobs and scratch folders.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blobs: Blobs = FolderBlobs(folder / "blobs")
        self._records: dict[Digest, Record] = {}
        self._notes: dict[str, Record] = {}
        self._holder: Holder | None = None

    def get(self, key: Digest) -> Record | None:
        record = self._records.get(key)
        if record is not None:
            check_files(record.bundle, self.blobs)
        return record

    def put(self, record: Record) -> None:
        self._records[record.key.digest] = record

    def note(self, record: Record) -> None:
        self._notes[record.node] = record

    def last(self, node: str) -> Record | None:
        return self._notes.get(node)

    def scratch(self, key: Digest) -> Path:
        return self.folder / "scratch" / key

    @contextmanager
    def lock(self) -> Iterator[Holder]:
        if self._holder is not None:
            raise UserError("This store in memory is in use by another run of this process.", hint="wait until it ends")
        self._holder = Holder(pid=os.getpid(), host="", run=os.urandom(16).hex(), started=datetime.now(UTC))
        try:
            yield self._holder
        finally:
            self._holder = None

    def holder(self) -> Holder | None:
        return self._holder


def check_files(bundle: ModelBundle, blobs: Blobs) -> None:
    """Proves that every file of a bundle is there and intact.

    Raises:
        DamagedRecord: One is not; the message names it.
    """
    for name, expected in bundle.files.items():
        try:
            found = file_digest(blobs.path(expected))
        except (UserError, OSError) as err:
            raise DamagedRecord(f"the file {name} ({expected[:12]}) of its result is lost") from err
        if found != expected:
            raise DamagedRecord(
                f"the file {name} of its result is damaged: expected {expected[:12]}, found {found[:12]}"
            )


def _read(place: Path) -> Record | None:
    if not place.exists():
        return None
    try:
        return schema_from_json(place, Record, "its record")
    except UserError as err:
        raise DamagedRecord(err.message) from err


def _write(place: Path, record: Record) -> None:
    text = record.to_json()
    with disk_errors(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".new-", dir=place.parent)
        try:
            with os.fdopen(handle, "w") as out:
                out.write(text)
                out.flush()
                os.fsync(out.fileno())
            os.replace(name, place)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
