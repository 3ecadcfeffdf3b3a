"""What every searcher must do. Inherit the suite, give the searcher, and pytest runs it:

class TestMine(SearcherConformance):
    name = "mine"
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from edgekd.core.events import RecordingReporter
from edgekd.core.recipe import ModelRecipe
from edgekd.search.journal import Journal, run_search
from edgekd.search.ranking import RankSum
from edgekd.search.scoring import Score
from edgekd.search.searcher import SEARCHERS, Outcome, Problem, Searcher, SearcherState, Settings
from edgekd.search.space import SPACES, Arch, GridSpace, Task
from edgekd.testing.toys import toy_recipe

EVALUATIONS = 40
GENERATION = 8


def toy_space() -> GridSpace:
    """A few hundred residual networks for tiny images; some of them are one network under several names."""
    preprocessing = toy_recipe().preprocessing
    return SPACES.get("residual")(Task(preprocessing=preprocessing, labels=(), classes=4, channel_multiple=8))


def small(arch: Arch) -> bool:
    """A limit that most students of the toy space are over."""
    return sum(arch) <= 6


class ToyWorkers:
    """Scores by the depths in the recipe, skips the shallowest networks, and dies before a certain candidate.

    Args:
        width: How many are said to be scored at a time.
        dies_at: Number of the candidate, from 0, that is never scored.
    """

    def __init__(self, *, width: int = 1, dies_at: int | None = None) -> None:
        self.width = width
        self.seen: list[ModelRecipe] = []
        self._dies_at = dies_at

    def scores(self, recipes: Sequence[ModelRecipe]) -> list[Score]:
        scores = []
        for recipe in recipes:
            if len(self.seen) == self._dies_at:
                raise KeyboardInterrupt
            self.seen.append(recipe)
            scores.append(_score(recipe))
        return scores

    def close(self) -> None:
        return None


def _score(recipe: ModelRecipe) -> Score:
    depths, widths = recipe.kwargs["depths"], recipe.kwargs["widths"]
    assert isinstance(depths, list)
    assert isinstance(widths, list)
    first, second = float(str(depths[0])), float(str(depths[1]))
    if first == second == 1:
        return Score(values=(), spreads=(), skipped="Too shallow.")
    return Score(values=(-abs(first - 3) - abs(second - 2), float(str(widths[-1]))), spreads=(0.1, 0.0))


class SearcherConformance:
    """The contract of `edgekd.search.searcher.Searcher`, as tests.

    Attributes:
        name: Registry key.
    """

    name: ClassVar[str]

    def searcher(self, *, fits: Callable[[Arch], bool] = small, seed: int = 0) -> Searcher:
        """A fresh one."""
        problem = Problem(
            space=toy_space(),
            ranking=RankSum(("depth", "width")),
            fits=fits,
            costs=lambda arch: (float(sum(arch)), float(max(arch))),
        )
        return SEARCHERS.get(self.name)(problem, Settings(seed=seed, population=12, tournament=4))

    def searched(self, folder: Path, workers: ToyWorkers, *, seed: int = 0) -> Searcher:
        """A finished search whose files lie in `folder`."""
        folder.mkdir(exist_ok=True)
        searcher = self.searcher(seed=seed)
        run_search(
            searcher,
            toy_space(),
            workers,
            Journal(folder),
            evaluations=EVALUATIONS,
            generation=GENERATION,
            reporter=RecordingReporter(),
        )
        return searcher

    def test_it_says_what_it_is(self) -> None:
        assert self.searcher().summary

    def test_a_batch_has_no_more_than_was_asked_for_and_no_network_twice(self, tmp_path: Path) -> None:
        assert len(self.searcher().ask(5)) == 5
        workers = ToyWorkers()
        self.searched(tmp_path, workers)
        assert len({recipe.digest for recipe in workers.seen}) == len(workers.seen) == EVALUATIONS

    def test_only_what_fits_is_asked_for(self, tmp_path: Path) -> None:
        searcher = self.searched(tmp_path, ToyWorkers())
        assert all(small(outcome.arch) for outcome in searcher.told)

    def test_a_small_space_is_searched_to_its_end(self) -> None:
        def fits(arch: Arch) -> bool:
            return sum(arch) <= 2

        searcher = self.searcher(fits=fits)
        asked: list[Arch] = []
        while batch := searcher.ask(GENERATION):
            searcher.tell([Outcome(arch=arch, values=(1.0, 1.0), spreads=(0.0, 0.0)) for arch in batch])
            asked += batch
        space = toy_space()
        fitting = {space.recipe(arch).digest for arch in space.architectures() if fits(arch)}
        assert {space.recipe(arch).digest for arch in asked} == fitting
        assert searcher.ask(1) == ()
        assert searcher.rejected > 0

    def test_skipped_students_are_remembered_and_not_scored(self, tmp_path: Path) -> None:
        searcher = self.searched(tmp_path, ToyWorkers())
        skipped = [outcome for outcome in searcher.told if outcome.skipped is not None]
        assert skipped
        assert len(searcher.scored) == EVALUATIONS - len(skipped)

    def test_a_search_in_which_nothing_can_be_scored_ends(self) -> None:
        searcher = self.searcher()
        for _ in range(4):
            searcher.tell([Outcome(arch=arch, skipped="Never.") for arch in searcher.ask(GENERATION)])
        assert len(searcher.told) == 4 * GENERATION
        assert searcher.scored == ()

    def test_equal_seeds_give_equal_searches(self, tmp_path: Path) -> None:
        first, again = (self.searched(tmp_path / name, ToyWorkers()) for name in ("a", "b"))
        assert first.state() == again.state()

    def test_the_number_of_workers_changes_nothing(self, tmp_path: Path) -> None:
        alone, many = (self.searched(tmp_path / str(width), ToyWorkers(width=width)) for width in (1, 3))
        assert alone.state() == many.state()

    @pytest.mark.parametrize("dies_at", [0, 1, 7, 8, 9, 20, EVALUATIONS - 1])
    def test_a_search_killed_at_any_point_ends_as_the_uninterrupted_one(self, tmp_path: Path, dies_at: int) -> None:
        whole = self.searched(tmp_path / "whole", ToyWorkers())
        killed, after = ToyWorkers(dies_at=dies_at), ToyWorkers()
        with pytest.raises(KeyboardInterrupt):
            self.searched(tmp_path / "killed", killed)
        resumed = self.searched(tmp_path / "killed", after)
        assert resumed.state() == whole.state()
        twice = {recipe.digest for recipe in killed.seen} & {recipe.digest for recipe in after.seen}
        assert not twice, "one worker at a time writes each score down at once"

    def test_its_state_is_plain_data(self, tmp_path: Path) -> None:
        state = self.searched(tmp_path, ToyWorkers()).state()
        fresh = self.searcher(seed=99)
        fresh.restore(SearcherState.parse(state.plain(), "state"))
        assert fresh.state() == state
        ahead, behind = (list(itertools.chain(searcher.ask(3))) for searcher in (fresh, self.restored(state)))
        assert ahead == behind

    def restored(self, state: SearcherState) -> Searcher:
        """A fresh one that goes on from `state`."""
        searcher = self.searcher()
        searcher.restore(state)
        return searcher
