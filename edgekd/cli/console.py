"""Renders events for a person or a machine: the only user of rich.

Three forms of one stream: live bars with the time left on a terminal, plain lines elsewhere (a bar becomes a line
every few seconds), JSON lines with `--format json`. Progress goes to standard error; results go to standard output.
"""

from __future__ import annotations

import json
import sys
import textwrap
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Literal

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from edgekd.core.events import Level, Reporter

NodeState = Literal["start", "done", "reused", "failed"]
MARKS: dict[NodeState, tuple[str, str]] = {
    "start": ("▸", "cyan"),
    "done": ("✓", "green"),
    "reused": ("=", "blue"),
    "failed": ("✗", "red"),
}
LINE_EVERY_S = 10.0
SHORT_S = 1.0


class ConsoleReporter(
    Reporter,
    AbstractContextManager["ConsoleReporter"],
):
    """Live bars on a terminal, throttled plain lines elsewhere.

    Args:
        verbosity: -1 warnings only, 0 normal, 1 everything.
    """

    def __init__(self, *, verbosity: int = 0) -> None:
        self.verbosity = verbosity
        # A log file has no width: its lines are left whole.
        self.console = Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())
        self._live = self.console.is_terminal and verbosity >= 0
        self._bars = Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("[dim]{task.fields[values]}"),
            TextColumn("[dim]elapsed"),
            TimeElapsedColumn(),
            TextColumn("[dim]left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._clock = _LineClock()

    def __enter__(self) -> ConsoleReporter:
        if self._live:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def message(self, text: str, *, level: Level = "info") -> None:
        if level == "debug" and self.verbosity < 1:
            return
        if level == "info" and self.verbosity < 0:
            return
        self.console.print(Text(text, style="yellow" if level == "warning" else ""))

    def node(self, name: str, state: NodeState, detail: str = "") -> None:
        if state in ("done", "failed"):
            self._end_tasks()
        if self.verbosity < 0 and state != "failed":
            return
        mark, colour = MARKS[state]
        if self.verbosity < 1 and state != "failed":
            detail = textwrap.shorten(detail, width=max(20, self.console.width - len(name) - 6), placeholder=" ...")
        line = Text.assemble((f"{mark} ", colour), (name, "bold"), (f"  {detail}" if detail else "", "dim"))
        self.console.print(line)

    def progress(self, task: str, done: int, total: int, values: Mapping[str, float] | None = None) -> None:
        if self.verbosity < 0:
            return
        shown = "  ".join(f"{name} {value:.4g}" for name, value in (values or {}).items())
        if self._live:
            self._draw(task, done, total, shown)
        elif line := self._clock.line(task, done, total, shown):
            self.console.print(Text(line))

    def _draw(self, task: str, done: int, total: int, shown: str) -> None:
        if task not in self._tasks:
            self._tasks[task] = self._bars.add_task(task, total=total, values=shown)
        self._bars.update(self._tasks[task], completed=done, total=total, values=shown)
        if done >= total:
            self._bars.remove_task(self._tasks.pop(task))

    def _end_tasks(self) -> None:
        """Forgets tasks that stopped before their last step: the next node's task of the same name starts anew."""
        self._clock = _LineClock()
        for bar in self._tasks.values():
            self._bars.remove_task(bar)
        self._tasks.clear()


class JsonReporter:
    """One JSON object per line on standard error."""

    def message(self, text: str, *, level: Level = "info") -> None:
        self._line({"event": "message", "level": level, "text": text})

    def node(self, name: str, state: NodeState, detail: str = "") -> None:
        self._line({"event": "node", "name": name, "state": state, "detail": detail})

    def progress(self, task: str, done: int, total: int, values: Mapping[str, float] | None = None) -> None:
        self._line({"event": "progress", "task": task, "done": done, "total": total, **(values or {})})

    def _line(self, event: dict[str, object]) -> None:
        click.echo(json.dumps(event), err=True)


class _LineClock:
    """Turns a stream of progress into a line now and then, with the time left from the pace so far.

    The pace counts from the first step that was made, for what comes before it (processes that start, say) comes once.
    Tasks that were over at once and have nothing to tell leave no line.
    """

    def __init__(self) -> None:
        self._started: dict[str, tuple[float, int]] = {}
        self._moved: dict[str, tuple[float, int]] = {}
        self._last: dict[str, float] = {}

    def line(self, task: str, done: int, total: int, shown: str) -> str | None:
        now = time.monotonic()
        started, first = self._started.setdefault(task, (now, done))
        if done > first or done >= total:
            self._moved.setdefault(task, (now, done))
        if done < total and now - self._last.setdefault(task, now) < LINE_EVERY_S:
            return None
        self._last[task] = now
        if done >= total:
            del self._started[task], self._last[task], self._moved[task]
            if not shown and now - started < SHORT_S:
                return None
            return f"  {task}: {done}/{total} in {_duration(now - started)}  {shown}".rstrip()
        return f"  {task}: {done}/{total}, {self._outlook(task, done, total, now)}  {shown}".rstrip()

    def _outlook(self, task: str, done: int, total: int, now: float) -> str:
        moved, at = self._moved.get(task, (now, done))
        if done <= at:
            return f"{_duration(now - self._started[task][0])} so far"
        return f"about {_duration((now - moved) / (done - at) * (total - done))} left"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def print_table(title: str, columns: list[str], rows: list[list[str]], *, numeric_from: int = 1) -> None:
    """Prints a table to standard output; columns from `numeric_from` on are aligned right."""
    table = Table(title=title or None, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < numeric_from else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # brackets in a cell are text, not markup
    width = None if sys.stdout.isatty() else 120
    Console(highlight=False, width=width).print(table)


def reporter_for(output_format: str, verbosity: int) -> ConsoleReporter | JsonReporter:
    """The reporter for `--format` and `-v`/`-q`."""
    return JsonReporter() if output_format == "json" else ConsoleReporter(verbosity=verbosity)
