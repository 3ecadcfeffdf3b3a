"""What the console makes of progress where there is no terminal: lines that say the truth about the time left."""

from __future__ import annotations

import pytest

from edgekd.cli import console
from edgekd.cli.console import ConsoleReporter


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(console.time, "monotonic", found)
    return found


def said(
    clock: Clock, reporter: ConsoleReporter, steps: list[tuple[float, int]], capsys: pytest.CaptureFixture[str]
) -> str:
    """What is printed when a task of 100 steps is at `done` at each of the times."""
    for at, done in steps:
        clock.now = at
        reporter.progress("trials", done, 100)
    return capsys.readouterr().err


def test_a_task_that_an_earlier_node_left_unfinished_does_not_count_for_the_next_ones(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    reporter = ConsoleReporter()
    said(clock, reporter, [(0, 1)], capsys)
    reporter.node("first", "done", "1 s")
    assert "left" not in said(clock, reporter, [(600, 1)], capsys)
    assert "about 20 s left" in said(clock, reporter, [(601, 2), (621, 51), (620 + 1.6, 51)], capsys)


def test_the_pace_is_that_of_the_steps_and_not_of_what_came_before_the_first(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    found = said(clock, ConsoleReporter(), [(0, 0), (58, 1), (70, 11)], capsys)
    assert "trials: 1/100, 58 s so far" in found
    assert "trials: 11/100, about 1 min 47 s left" in found


def test_what_was_over_at_once_leaves_no_line_unless_it_has_something_to_tell(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    reporter = ConsoleReporter()
    assert said(clock, reporter, [(0, 50), (0.4, 100)], capsys) == ""
    assert "trials: 100/100 in 3 s" in said(clock, reporter, [(1, 50), (4, 100)], capsys)
    reporter.progress("distil", 1, 1, {"loss": 0.5})
    assert "loss 0.5" in capsys.readouterr().err
