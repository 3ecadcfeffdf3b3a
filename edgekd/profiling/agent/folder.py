"""The agent's folder on the board: content-addressed files, jobs, and the removal of what is no longer of use.

Nothing outside of it is written. A file appears under its digest only when it is whole and its digest was checked.
Standard library of Python 3.10 only: it runs on the board.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from edgekd.profiling.agent.wire import BAD_REQUEST, DAMAGED, DISK_FULL, AgentError, agent_error

KEPT_S = 7 * 86400.0
"""A model, a built engine or a finished job that nobody asked for in this time is removed."""
SPARE_BYTES = 16 << 20
"""Left free on the disk: a system whose disk is full to the last byte misbehaves in other places first."""
_CHUNK = 1 << 20
_PIECE = 3 << 16
"""Of a file that goes home: divisible by three, so that its text has no padding."""


@dataclass(frozen=True)
class Folder:
    """Where the agent keeps things.

    Attributes:
        root: The folder that holds the agent itself; created by whoever installed it.
    """

    root: Path

    @property
    def jobs(self) -> Path:
        """Jobs that were not fetched yet."""
        return self.root / "jobs"

    @property
    def fetched(self) -> Path:
        """Jobs whose result went home; kept for a second reader of the same job."""
        return self.root / "fetched"

    @property
    def engines(self) -> Path:
        """Engines that were built here."""
        return self.root / "engines"

    def file(self, digest: str) -> Path:
        """Where a pushed file is or would be.

        Raises:
            AgentError: Not the form of a digest; it must never become a path.
        """
        return self.root / "files" / _checked(digest)

    def files(self, digests: Iterable[str]) -> tuple[Path, ...]:
        """Where several of them are or would be."""
        return tuple(self.file(str(digest)) for digest in digests)

    def missing(self, digests: Iterable[str]) -> list[str]:
        """Those that have to be pushed; the others count as used now."""
        absent = []
        for digest in digests:
            path = self.file(digest)
            if path.is_file():
                os.utime(path)
            else:
                absent.append(digest)
        return absent

    def receive(self, digest: str, size: int, stream: BinaryIO) -> None:
        """Stores `size` bytes of a stream under their digest.

        Raises:
            AgentError: The disk is full, the stream ended early, or its bytes have another digest; nothing is kept.
        """
        path = self.file(digest)
        made = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            require_space(path.parent, size)
            with made.open("wb") as out:
                found = _copied(stream, out, size)
            if found != digest:
                raise AgentError(
                    DAMAGED, f"{size} bytes were expected with the SHA-256 {digest[:12]}..., got {found[:12]}..."
                )
            os.replace(made, path)
        except OSError as err:
            raise agent_error(err, path) from err
        finally:
            if made.exists():
                made.unlink()

    def send(self, digest: str, say: Callable[[dict[str, Any]], None]) -> None:
        """Says the bytes of a file, piece by piece, and their number at the end.

        Raises:
            AgentError: There is no such file any more.
        """
        path = self.file(digest)
        try:
            with path.open("rb") as source:
                while piece := source.read(_PIECE):
                    say({"piece": base64.b64encode(piece).decode("ascii")})
            say({"sent": path.stat().st_size})
        except OSError as err:
            raise AgentError(BAD_REQUEST, f"the file {digest[:12]} was removed from the board") from err

    def forget(self, digests: Iterable[str]) -> None:
        """Removes files that nobody will ask for again; those that are not there are forgotten already."""
        for digest in digests:
            self.file(digest).unlink(missing_ok=True)

    def tidy(self, now_s: float | None = None) -> None:
        """Removes what was not used for `KEPT_S`, agents of other versions of that age among it.

        Models of jobs that still wait stay in any case: the clock of a board without a battery jumps when it is set.
        """
        limit = (time.time() if now_s is None else now_s) - KEPT_S
        needed = "".join(path.read_text(errors="replace") for path in self.root.glob("jobs/*/spec.json"))
        places = [*self.root.glob("files/*"), *self.root.glob("files/.*"), *self.root.glob("engines/*")]
        places += [*self.root.glob("fetched/*"), *self.root.glob("agent-*.pyz")]
        for path in places:
            try:
                if path.stat().st_mtime < limit and path.name not in needed:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            except OSError:
                continue  # another agent was faster, or it is not ours to remove


def _checked(digest: str) -> str:
    if len(digest) != 64 or not all(letter in "0123456789abcdef" for letter in digest):
        raise AgentError(BAD_REQUEST, f"{digest!r} is not a SHA-256 in hexadecimal")
    return digest


def require_space(folder: Path, size: int) -> None:
    """Refuses to write `size` bytes where they would fill the disk.

    Raises:
        AgentError: The numbers, and what may be removed.
    """
    free = shutil.disk_usage(folder).free
    if free < size + SPARE_BYTES:
        raise AgentError(
            DISK_FULL,
            f"no space left on the board's disk: {(size + SPARE_BYTES) / 2**20:.0f} MiB are needed in {folder}, "
            f"{free / 2**20:.0f} MiB are free",
            f"free some space there; what edgekd keeps in {folder} may be removed",
        )


def _copied(stream: BinaryIO, out: BinaryIO, size: int) -> str:
    """The digest of the bytes that were copied and are on the disk."""
    hasher, left = hashlib.sha256(), size
    while left > 0:
        chunk = stream.read(min(_CHUNK, left))
        if not chunk:
            break
        hasher.update(chunk)
        out.write(chunk)
        left -= len(chunk)
    out.flush()
    os.fsync(out.fileno())
    return hasher.hexdigest()
