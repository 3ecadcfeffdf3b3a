"""What a native library writes to standard error, kept for a message instead of shown to a reader who cannot place it.

Such libraries say why they refuse a file on standard error and raise a bare code; they also narrate their start there.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

MOST_CHARACTERS = 300


@dataclass
class NativeOutput:
    """What was written during a block; filled when the block ends.

    Attributes:
        text: All of it.
    """

    text: str = ""

    @property
    def last(self) -> str:
        """The last line that is not empty, without the place in the library's source; empty when there was none."""
        lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        return lines[-1].split("] ", 1)[-1][:MOST_CHARACTERS] if lines else ""


@contextmanager
def native_stderr() -> Iterator[NativeOutput]:
    """Keeps what is written to file descriptor 2 in the block, by any thread; short blocks only.

    Where there is no such descriptor, nothing is kept.
    """
    found = NativeOutput()
    try:
        saved = os.dup(2)
    except OSError:
        yield found
        return
    with tempfile.TemporaryFile() as file:
        if sys.stderr is not None:
            sys.stderr.flush()
        os.dup2(file.fileno(), 2)
        try:
            yield found
        finally:
            if sys.stderr is not None:
                sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            found.text = file.read().decode(errors="replace")
