"""What a search needs of those who score its candidates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from edgekd.core.recipe import ModelRecipe
from edgekd.search.scoring import Score


class Workers(Protocol):
    """Scores recipes, each once."""

    @property
    def width(self) -> int:
        """How many candidates are scored at the same time."""

    def scores(self, recipes: Sequence[ModelRecipe]) -> list[Score]:
        """The scores, in the order of the recipes.

        A candidate that ends its worker (memory is full, a library crashes) is scored once more on another one, and
        skipped with the reason when that ends too. Any other error of a candidate is raised.
        """

    def close(self) -> None:
        """Lets the workers go, at once, whatever they do; nothing can be scored afterwards."""
