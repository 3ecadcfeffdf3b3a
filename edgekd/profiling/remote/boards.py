"""The same profile on several boards at once: one outcome for each, a failed board beside the others.

Threads suffice: each one waits for an ssh client. Boards do not compete, and one board's jobs are queued on the board.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

from edgekd.core.events import Level, Reporter
from edgekd.errors import EdgekdError
from edgekd.profiling.remote.address import parse_address
from edgekd.profiling.remote.lab import LabBoard
from edgekd.profiling.remote.profile import BoardProfile, profile_on_board
from edgekd.profiling.remote.request import BoardPlan, Candidate
from edgekd.profiling.remote.ssh import Ssh

Outcome = BoardProfile | EdgekdError


def profile_on_boards(
    boards: Mapping[str, LabBoard],
    candidates: Sequence[Candidate],
    plan: BoardPlan,
    *,
    concurrency: int,
    reporter: Reporter,
) -> dict[str, Outcome]:
    """What each board found, or the error that stands in its place.

    Args:
        boards: By name.
        candidates: What to measure.
        plan: How.
        concurrency: Boards at the same time.
        reporter: Told of progress; events of boards are told one at a time.
    """
    shared = _OneAtATime(reporter)

    def outcome(item: tuple[str, LabBoard]) -> Outcome:
        return board_outcome(*item, candidates, plan, shared)

    with ThreadPoolExecutor(max_workers=concurrency, thread_name_prefix="board") as pool:
        return dict(zip(boards, pool.map(outcome, boards.items()), strict=True))


def board_outcome(
    name: str, board: LabBoard, candidates: Sequence[Candidate], plan: BoardPlan, reporter: Reporter
) -> Outcome:
    """What one board of a lab found, or the error that stands in its place."""
    try:
        ssh = Ssh(parse_address(board.address, f"boards.{name}.address"))
        return profile_on_board(ssh, candidates, plan, reporter=reporter, python=board.python, name=name)
    except EdgekdError as err:
        return err


@dataclass(frozen=True)
class _OneAtATime:
    """Hands events of several threads on to a reporter that expects one."""

    reporter: Reporter
    lock: threading.Lock = field(default_factory=threading.Lock)

    def message(self, text: str, *, level: Level = "info") -> None:
        with self.lock:
            self.reporter.message(text, level=level)

    def node(self, name: str, state: Literal["start", "done", "reused", "failed"], detail: str = "") -> None:
        with self.lock:
            self.reporter.node(name, state, detail)

    def progress(self, task: str, done: int, total: int, values: Mapping[str, float] | None = None) -> None:
        with self.lock:
            self.reporter.progress(task, done, total, values)
