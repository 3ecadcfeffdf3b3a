"""What long work tells the world while it runs. The library emits; `edgekd.cli.console` renders.

A reporter must be cheap (it is called from training loops), must never raise, and never changes a result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from edgekd.core.digest import Json

Level = Literal["debug", "info", "warning"]


@runtime_checkable
class Reporter(Protocol):
    """Receives progress. All methods return at once."""

    def message(self, text: str, *, level: Level = "info") -> None:
        """One line for the reader."""

    def node(self, name: str, state: Literal["start", "done", "reused", "failed"], detail: str = "") -> None:
        """A node of the graph changed its state."""

    def progress(self, task: str, done: int, total: int, values: Mapping[str, float] | None = None) -> None:
        """`done` of `total` steps of `task`; `values` are shown beside the bar. `done == total` ends the task."""


class SilentReporter:
    """Drops everything."""

    def message(self, text: str, *, level: Level = "info") -> None:
        """Does nothing."""

    def node(self, name: str, state: Literal["start", "done", "reused", "failed"], detail: str = "") -> None:
        """Does nothing."""

    def progress(self, task: str, done: int, total: int, values: Mapping[str, float] | None = None) -> None:
        """Does nothing."""


@dataclass
class RecordingReporter:
    """Keeps everything, for tests and for the JSON-lines log."""

    events: list[dict[str, Json]] = field(default_factory=list)

    def message(self, text: str, *, level: Level = "info") -> None:
        self.events.append({"event": "message", "level": level, "text": text})

    def node(self, name: str, state: Literal["start", "done", "reused", "failed"], detail: str = "") -> None:
        self.events.append({"event": "node", "name": name, "state": state, "detail": detail})

    def progress(self, task: str, done: int, total: int, values: Mapping[str, float] | None = None) -> None:
        self.events.append({"event": "progress", "task": task, "done": done, "total": total, **(values or {})})
