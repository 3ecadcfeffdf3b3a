"""Verdicts over time: append-only JSON lines, so that a history merges and reviews like a log.

A line is written by one system call to a file opened for appending, so that jobs that finish together do not mix their
lines. Nothing here ever rewrites a file.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Literal

from edgekd.core.blobs import disk_errors
from edgekd.core.report import Origin, Status
from edgekd.core.schema import Schema
from edgekd.errors import UserError


class HistoryEntry(Schema):
    """One verdict.

    Attributes:
        time: ISO 8601, UTC, seconds.
        label: What the code was: a commit, a tag.
        subject: What was judged.
        device: Fingerprint.
        reason: The verdict's sentence.
        origin: Whether the latency was measured.
        p50_ms: Median latency; None when there is none.
        low_ms: Lower end of its 95 % interval.
        high_ms: Upper end.
        limit_ms: The absolute limit, if one was asked for.
        ratio: Latency over that of the baseline measured in turns with it.
        ratio_low: Lower end of its interval.
        ratio_high: Upper end.
        accuracy: Of the judged engine, where it was evaluated.
    """

    schema_version: Literal[1] = 1
    time: str
    label: str = ""
    subject: str
    device: str
    status: Status
    reason: str
    origin: Origin = "measured"
    p50_ms: float | None = None
    low_ms: float | None = None
    high_ms: float | None = None
    limit_ms: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    accuracy: float | None = None


def append_entry(path: Path, entry: HistoryEntry) -> None:
    """Adds a line to the file, which is made when it is not there.

    Raises:
        UserError: It cannot be written.
    """
    given = {name: value for name, value in entry.plain().items() if value not in (None, "")}
    line = json.dumps(given, sort_keys=True, ensure_ascii=False) + "\n"
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)


def read_history(path: Path) -> tuple[HistoryEntry, ...]:
    """The entries in the order of the file.

    Raises:
        UserError: No such file, or a line that is not an entry; the message gives its number.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise UserError(f"Cannot read the history {path} ({err}).", hint="edgekd gate ... --history FILE") from err
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except ValueError as err:
            raise UserError(
                f"{path}, line {number}: not JSON ({err}).", hint="the line may have been cut off; remove it"
            ) from err
        found.append(HistoryEntry.parse(data, f"{path}, line {number}"))
    return tuple(found)
