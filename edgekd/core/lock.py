"""One run at a time in a store, and a way to ask which run that is.

The lock is the kernel's (`flock`), so it ends with its process and the workers that this one forked, however they end:
a stale lock cannot exist. What the file says is only for messages, and for the followers of a distributed run, who
must know whose results to wait for.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from edgekd.core.blobs import disk_errors
from edgekd.core.schema import Schema
from edgekd.errors import UserError

_ATTEMPTS = 10
_PAUSE_S = 0.05


class Holder(Schema):
    """Who uses a store.

    Attributes:
        run: Token of the run; no two runs share one.
        started: When it took the lock.
    """

    pid: int
    host: str
    run: str
    started: datetime


class StoreLock:
    """Context manager that holds a store for one run and gives its `Holder`.

    Args:
        root: The store's folder, created when it is missing.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / "lock"
        self._handle: int | None = None

    def __enter__(self) -> Holder:
        """Takes the lock.

        Raises:
            UserError: Another run has it, or the folder cannot be written.
        """
        with disk_errors(self.path):
            self.root.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not _taken(handle):
                raise self._in_use()
            mine = Holder(pid=os.getpid(), host=socket.gethostname(), run=uuid.uuid4().hex, started=datetime.now(UTC))
            with disk_errors(self.path):
                os.truncate(handle, 0)
                os.pwrite(handle, json.dumps(mine.plain()).encode(), 0)
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle
        return mine

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def holder(self) -> Holder | None:
        """Who holds the lock now, or None when nobody does (or is just about to)."""
        try:
            handle = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return self._written()
        finally:
            os.close(handle)
        return None

    def _written(self) -> Holder | None:
        """What the file says; None while its owner has not written it yet."""
        try:
            return Holder.parse(json.loads(self.path.read_text()), str(self.path))
        except (json.JSONDecodeError, UserError):
            return None

    def _in_use(self) -> UserError:
        by = self._written()
        who = f"process {by.pid} on {by.host}, started {by.started:%Y-%m-%d %H:%M:%S} UTC" if by else "another process"
        return UserError(
            f"The store {self.root} is in use by {who}.",
            hint="wait until that run ends, or give this one a store of its own with --store",
        )


def _taken(handle: int) -> bool:
    """Whether the lock could be had; asks a few times, because `holder` takes it for an instant to look."""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE_S)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            continue
    return False
