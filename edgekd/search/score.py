"""Scores recipes: draws the random networks, averages over draws, and shares everything that can be shared.

For every seed the teacher is drawn once and serves all students; every student sees the same images.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgekd.core.recipe import ModelRecipe
from edgekd.nn.build import module_from_recipe
from edgekd.search.proxy import PROXIES, ScoreStudent


@dataclass(frozen=True, kw_only=True)
class Score:
    """What the proxies say about one student.

    Attributes:
        values: Mean over the seeds, in the order of the proxies; higher is better.
        spreads: Standard deviation over the seeds; 0 for proxies that do not depend on the weights.
    """

    values: tuple[float, ...]
    spreads: tuple[float, ...]


class Scorer:
    """Scores any number of students against one teacher.

    Args:
        teacher: Its architecture counts, its weights do not: they are drawn anew for every seed. Left as it was.
        images: (N, C, H, W), preprocessed; the batch that every network sees.
        proxies: Names in `PROXIES`.
        seeds: Of the random weights of teacher and students.
    """

    def __init__(self, teacher: nn.Module, images: Tensor, *, proxies: Sequence[str], seeds: Sequence[int]) -> None:
        chosen = [PROXIES.get(name)() for name in proxies]
        self._scorers: list[dict[int, ScoreStudent]] = [{} for _ in chosen]
        for seed in seeds if any(proxy.uses_weights for proxy in chosen) else seeds[:1]:
            drawn = with_random_weights(teacher, seed)
            for proxy, scorers in zip(chosen, self._scorers, strict=True):
                if proxy.uses_weights or seed == seeds[0]:
                    scorers[seed] = proxy.bind(drawn, images)

    def score(self, recipe: ModelRecipe) -> Score:
        """The score of the network that the recipe builds."""
        seeds = {seed for scorers in self._scorers for seed in scorers}
        students = {seed: module_from_recipe(recipe, seed=seed) for seed in seeds}
        drawn = [[score(students[seed]) for seed, score in scorers.items()] for scorers in self._scorers]
        return Score(
            values=tuple(statistics.fmean(values) for values in drawn),
            spreads=tuple(statistics.stdev(values) if len(values) > 1 else 0.0 for values in drawn),
        )


def score(
    recipes: Sequence[ModelRecipe],
    teacher: nn.Module,
    images: Tensor,
    *,
    proxy: str = "diswot",
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
) -> list[float]:
    """One proxy's mean score of each recipe; higher promises a better student.

    Args:
        recipes: Students.
        teacher: See `Scorer`.
        images: (N, C, H, W), preprocessed.
        proxy: A name in `PROXIES`.
        seeds: At least one; five keep the draw of the weights from deciding.
    """
    scorer = Scorer(teacher, images, proxies=(proxy,), seeds=seeds)
    return [scorer.score(recipe).values[0] for recipe in recipes]


def with_random_weights(module: nn.Module, seed: int) -> nn.Module:
    """A copy whose layers have drawn their weights anew, each by its own `reset_parameters`."""
    copied = copy.deepcopy(module)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part in copied.modules():
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset()
    return copied
