"""Keeps a search on disk while it runs, so that a kill at any point costs at most the students that were being scored.

Two files in the scratch folder: the state of the searcher, replaced between batches, and the outcomes, one line each,
appended as they come. After a kill the searcher repeats its last batch, and what has an outcome is not scored again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from edgekd.core.blobs import disk_errors
from edgekd.core.events import Reporter
from edgekd.core.report_io import schema_from_json
from edgekd.search.searcher import Outcome, Searcher, SearcherState
from edgekd.search.space import Arch, SearchSpace
from edgekd.search.workers import Workers

STATE_FILE = "search.json"
OUTCOMES_FILE = "outcomes.jsonl"
_ROUNDS = 4
"""Students handed out at once, for each that is scored at the same time: fewer idle workers, more to repeat."""


class Journal:
    """The files of one search.

    Args:
        folder: Of this search alone; it exists.
    """

    def __init__(self, folder: Path) -> None:
        self._state = folder / STATE_FILE
        self._outcomes = folder / OUTCOMES_FILE
        self._known = {outcome.arch: outcome for outcome in _read(self._outcomes)}

    def restore_(self, searcher: Searcher) -> None:
        """Brings a fresh searcher to where the search was after its last whole batch."""
        if self._state.exists():
            searcher.restore(schema_from_json(self._state, SearcherState, "search checkpoint"))

    def outcome(self, arch: Arch) -> Outcome | None:
        """What is known of an architecture."""
        return self._known.get(arch)

    def add(self, outcomes: Sequence[Outcome]) -> None:
        """Writes outcomes down at once."""
        with disk_errors(self._outcomes), self._outcomes.open("a", encoding="utf-8") as file:
            for outcome in outcomes:
                file.write(json.dumps(outcome.plain()) + "\n")
                self._known[outcome.arch] = outcome

    def save(self, state: SearcherState) -> None:
        """Replaces the state at once: a kill leaves the old or the new one."""
        temporary = self._state.with_suffix(".tmp")
        with disk_errors(self._state):
            temporary.write_text(json.dumps(state.plain()), encoding="utf-8")
            os.replace(temporary, self._state)


def run_search(
    searcher: Searcher,
    space: SearchSpace,
    workers: Workers,
    journal: Journal,
    *,
    evaluations: int,
    generation: int,
    reporter: Reporter,
) -> None:
    """Lets a searcher ask and tell until there are enough students or none is left; goes on where the journal ends.

    Args:
        space: Turns what is asked for into recipes.
        evaluations: Students to ask for, skipped ones included.
        generation: Students asked for at a time. Part of the result, unlike the number of workers.
    """
    journal.restore_(searcher)
    while asked := searcher.ask(min(generation, evaluations - len(searcher.told))):
        told = len(searcher.told)
        unknown = [arch for arch in asked if journal.outcome(arch) is None]
        share = workers.width if workers.width == 1 else _ROUNDS * workers.width
        for start in range(0, len(unknown), share):
            journal.add(_scored(unknown[start : start + share], space, workers, reporter))
            done = told + len(asked) - len(unknown) + min(start + share, len(unknown))
            if done < evaluations:
                reporter.progress("search", done, evaluations, {"rejected": searcher.rejected})
        searcher.tell([outcome for arch in asked if (outcome := journal.outcome(arch)) is not None])
        journal.save(searcher.state())
    reporter.progress("search", evaluations, evaluations, {"rejected": searcher.rejected})


def _scored(archs: Sequence[Arch], space: SearchSpace, workers: Workers, reporter: Reporter) -> list[Outcome]:
    """The outcomes, in order; who is skipped is said."""
    recipes = [space.recipe(arch) for arch in archs]
    outcomes = [
        Outcome(arch=arch, values=score.values, spreads=score.spreads, skipped=score.skipped)
        for arch, score in zip(archs, workers.scores(recipes), strict=True)
    ]
    for outcome in outcomes:
        if outcome.skipped is not None:
            reporter.message(f"Student {list(outcome.arch)} is not scored: {outcome.skipped}")
    return outcomes


def _read(path: Path) -> list[Outcome]:
    """The whole lines of the file; a kill may have torn the last one."""
    if not path.exists():
        return []
    with disk_errors(path):
        text = path.read_text(encoding="utf-8")
    whole, newline, torn = text.rpartition("\n")
    if torn:
        with disk_errors(path):
            path.write_text(whole + newline, encoding="utf-8")
    return [Outcome.parse(json.loads(line), str(path)) for line in whole.splitlines()]
