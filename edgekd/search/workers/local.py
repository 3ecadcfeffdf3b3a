"""Scoring without any other process: for counting proxies, for debugging, and on machines with one core."""

from __future__ import annotations

from collections.abc import Sequence

from edgekd.core.recipe import ModelRecipe
from edgekd.search.scoring import Score, Scorer


class LocalWorker:
    """Scores one after the other, in this process, which a candidate that needs too much memory may end."""

    width = 1

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    def scores(self, recipes: Sequence[ModelRecipe]) -> list[Score]:
        return [self._scorer.score(recipe) for recipe in recipes]

    def close(self) -> None:
        return None
