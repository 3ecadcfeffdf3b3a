"""What a native library writes to standard error, kept for a message instead of shown to a reader who cannot place it.

Such libraries say why they refuse a file on standard error and raise a bare code; they also narrate their start there.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr
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
    """Keeps what is written to standard error in the block, by any thread; short blocks only.

    Both ways are closed: file descriptor 2, and `sys.stderr`, to which bindings may send what their library writes.
    Where there is no such descriptor, only the second.
    """
    found, written = NativeOutput(), io.StringIO()
    with ExitStack() as stack:
        stack.enter_context(redirect_stderr(written))
        file = stack.enter_context(tempfile.TemporaryFile())
        try:
            saved: int | None = os.dup(2)
        except OSError:
            saved = None
        if saved is not None:
            os.dup2(file.fileno(), 2)
        try:
            yield found
        finally:
            if saved is not None:
                os.dup2(saved, 2)
                os.close(saved)
            file.seek(0)
            found.text = file.read().decode(errors="replace") + written.getvalue()
