"""Exhaustive search: scores every student that fits, where there are not too many."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from edgekd.errors import UserError
from edgekd.search.searcher import Problem, Searcher, SearcherState, Settings
from edgekd.search.space import Arch

MOST = 20_000
"""Architectures of a space that is searched to its end."""


class Exhaustive(Searcher):
    """Goes up from the cheapest architecture, as far as there are any that fit.

    Raises:
        UserError: The space is too large for that.
    """

    summary = "scores every student that fits; for small spaces"

    def __init__(self, problem: Problem, settings: Settings) -> None:
        super().__init__(problem, settings)
        if problem.space.size > MOST:
            raise UserError(
                f"A space of {problem.space.size:,} architectures is not searched exhaustively (at most {MOST:,}).",
                hint="use --searcher evolution or nsga2",
            )
        self._position = 0
        self._left: Iterator[tuple[Arch, bool]] = problem.explored()

    def _next(self, place: int) -> Arch | None:
        for arch, fits in self._left:
            self._position += 1
            if not fits:
                self.rejected += 1
            elif self._claim(arch):
                return arch
        return None

    def state(self) -> SearcherState:
        return super().state().model_copy(update={"position": self._position})

    def restore(self, state: SearcherState) -> None:
        super().restore(state)
        self._position = state.position
        self._left = islice(self.problem.explored(), state.position, None)
