"""What the measuring process leaves behind while it works, so that its watcher knows what it was busy with.

A pulse is one small write before each thing that a runtime may crash or hang in, outside of what is timed. Standard
library of Python 3.10 only.
"""

from __future__ import annotations

import os
from pathlib import Path

from edgekd.profiling.agent.engines import Engine
from edgekd.profiling.agent.loop import CallTimer, TurnFailed, settle

PULSE_FILE = "pulse"
OPENING, RUNNING, BETWEEN, EXTRAS = "open", "run", "between", "extras"
"""What it may be busy with; the timings are on the disk before `EXTRAS` begin."""
_PULSE_BYTES = 48


class Pulse:
    """Says which engine is being worked on: phase, index, counter.

    Args:
        path: One line of fixed length, written in place.
    """

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        self._count = 0

    def beat(self, phase: str, index: int) -> None:
        """Before something that may not come back."""
        self._count += 1
        os.pwrite(self._handle, f"{phase} {index} {self._count}".ljust(_PULSE_BYTES).encode(), 0)

    def close(self) -> None:
        """Ends it."""
        os.close(self._handle)


def pulse_in(path: Path) -> tuple[str, int, int] | None:
    """(phase, index, counter) of the last beat; None before the first."""
    try:
        phase, index, count = path.read_text().split()
        return phase, int(index), int(count)
    except (OSError, ValueError):
        return None


class PulsedTimer:
    """A timer whose turns leave a pulse, and whose errors become those of one engine alone; see `Timer`."""

    def __init__(self, engine: Engine, index: int, pulse: Pulse) -> None:
        self._timer = CallTimer(engine.run)
        self._index = index
        self._pulse = pulse

    def warm_up(self, seconds: float) -> tuple[int, int]:
        self._pulse.beat(RUNNING, self._index)
        try:
            found = self._timer.warm_up(seconds)
            settle()
            return found
        except Exception as err:
            raise TurnFailed(f"it could not run on the board: {err}") from err

    def turn(self, calls: int) -> list[int]:
        self._pulse.beat(RUNNING, self._index)
        try:
            found = self._timer.turn(calls)
            settle()
            return found
        except Exception as err:
            raise TurnFailed(f"it stopped running on the board: {err}") from err
