"""What a killed search leaves on the disk, and that it is read back."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.core.events import RecordingReporter
from edgekd.search.journal import OUTCOMES_FILE, Journal, run_search
from edgekd.search.searcher import Outcome, Searcher, SearcherState
from edgekd.testing.conformance_searcher import EVALUATIONS, GENERATION, SearcherConformance, ToyWorkers, toy_space


class Evolution(SearcherConformance):
    """For its toys; the suite itself runs beside the searchers."""

    name = "evolution"


SUITE = Evolution()
OUTCOME = Outcome(arch=(1, 2), values=(0.1234567890123456,), spreads=(0.5,))


def test_outcomes_come_back_to_the_last_bit(tmp_path: Path) -> None:
    Journal(tmp_path).add([OUTCOME])
    assert Journal(tmp_path).outcome((1, 2)) == OUTCOME
    assert Journal(tmp_path).outcome((2, 1)) is None


def test_a_line_that_a_kill_has_torn_is_forgotten(tmp_path: Path) -> None:
    Journal(tmp_path).add([OUTCOME])
    with (tmp_path / OUTCOMES_FILE).open("a") as file:
        file.write('{"arch": [3, 4], "val')
    journal = Journal(tmp_path)
    assert journal.outcome((3, 4)) is None
    journal.add([OUTCOME.model_copy(update={"arch": (3, 4)})])
    assert Journal(tmp_path).outcome((3, 4)) is not None


def test_a_kill_between_a_batch_and_its_state_scores_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = SUITE.searched(tmp_path / "whole", ToyWorkers())

    def dies(self: Journal, state: SearcherState) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "save", dies)
        with pytest.raises(KeyboardInterrupt):
            SUITE.searched(tmp_path / "killed", ToyWorkers())
    after = ToyWorkers()
    resumed = SUITE.searched(tmp_path / "killed", after)
    assert resumed.state() == whole.state()
    assert len(after.seen) == EVALUATIONS - GENERATION


def progress(folder: Path, searcher: Searcher) -> list[tuple[object, object]]:
    reporter = RecordingReporter()
    run_search(
        searcher, toy_space(), ToyWorkers(), Journal(folder), evaluations=20, generation=8, reporter=reporter
    )  # fmt: skip
    return [(event["done"], event["total"]) for event in reporter.events if event["event"] == "progress"]


def test_progress_counts_every_student_and_ends_once(tmp_path: Path) -> None:
    assert progress(tmp_path, SUITE.searcher()) == [(done, 20) for done in range(1, 21)]


def test_an_exhausted_space_ends_the_progress_too(tmp_path: Path) -> None:
    steps = progress(tmp_path, SUITE.searcher(fits=lambda arch: sum(arch) <= 1))
    assert steps[-1] == (20, 20)
    assert len(steps) < 20


def test_who_is_skipped_is_said_with_the_reason(tmp_path: Path) -> None:
    reporter = RecordingReporter()
    run_search(
        SUITE.searcher(), toy_space(), ToyWorkers(), Journal(tmp_path), evaluations=EVALUATIONS, generation=8,
        reporter=reporter,
    )  # fmt: skip
    assert any("is not scored: Too shallow." in str(event.get("text")) for event in reporter.events)
