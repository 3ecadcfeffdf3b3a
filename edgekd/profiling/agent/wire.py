"""What the agent says and how: one marked JSON line per answer, errors with a code that the other side can tell apart.

The mark keeps an answer apart from whatever a login shell of the board prints before it. Files that another process
reads meanwhile appear whole or not at all. Standard library of Python 3.10 only: it runs on the board.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

MARK = "edgekd-agent: "
FAILED_EXIT = 9
"""Exit code of an agent that has said why it failed; any other code means that it could not."""

DISK_FULL = "disk-full"
NOT_WRITABLE = "not-writable"
BAD_REQUEST = "bad-request"
DAMAGED = "damaged"
NO_JOB = "no-job"


class AgentError(Exception):
    """A failure that the agent reports by a code, a message and a hint.

    Args:
        code: One of the constants above.
        message: What was expected, what was found, where.
        hint: What a person can do; empty when there is nothing.
    """

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint

    def plain(self) -> dict[str, Any]:
        """As it is said."""
        return {"error": self.code, "message": self.message, "hint": self.hint}


def say(value: dict[str, Any]) -> None:
    """Writes one answer to standard output, at once."""
    sys.stdout.write(MARK + json.dumps(value) + "\n")
    sys.stdout.flush()


def heard(line: str) -> dict[str, Any] | None:
    """The answer in a line of output; None for a line that is not the agent's."""
    start = line.find(MARK)
    if start < 0:
        return None
    try:
        value = json.loads(line[start + len(MARK) :])
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def write_json(path: Path, value: Any) -> None:
    """Replaces a file by the JSON of `value`; a reader sees the old one or the new one, whole."""
    made = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with made.open("w", encoding="utf-8") as out:
            json.dump(value, out)
            out.flush()
            os.fsync(out.fileno())
        os.replace(made, path)
    except OSError:
        made.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file; None when there is no such file or it holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def agent_error(err: OSError, place: Path) -> AgentError:
    """The `AgentError` that tells what an error of the file system means."""
    if err.errno in (errno.ENOSPC, errno.EDQUOT):
        return AgentError(
            DISK_FULL,
            f"no space left on the board's disk while writing {place}",
            f"free some space there; what edgekd keeps is in {place.parent} and may be removed",
        )
    return AgentError(
        NOT_WRITABLE,
        f"cannot write {place} on the board: {err.strerror or err}",
        "the folder must belong to the user who logs in",
    )
