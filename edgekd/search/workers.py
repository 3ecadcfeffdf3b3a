"""Where candidates are scored: here, in other processes, or on other machines.

Which worker scores a candidate never changes its score, so a search gives the same result on any number of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from edgekd.core.recipe import ModelRecipe
from edgekd.search.scoring import Score, Scorer


class Workers(Protocol):
    """Scores recipes, each once."""

    @property
    def width(self) -> int:
        """How many candidates are scored at the same time."""

    def scores(self, recipes: Sequence[ModelRecipe]) -> list[Score]:
        """The scores, in the order of the recipes."""

    def close(self) -> None:
        """Lets the workers go; nothing can be scored afterwards."""


class LocalWorker:
    """Scores one after the other, in this process."""

    width = 1

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    def scores(self, recipes: Sequence[ModelRecipe]) -> list[Score]:
        return [self._scorer.score(recipe) for recipe in recipes]

    def close(self) -> None:
        return None
