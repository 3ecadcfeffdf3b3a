"""What each searcher is for: evolution finds high scores, NSGA-II wide fronts, and both beat chance."""

from __future__ import annotations

import random
import statistics

import numpy as np

from edgekd.search.front import front_places
from edgekd.search.ranking import RankSum
from edgekd.search.searcher import SEARCHERS, Outcome, Problem, Searcher, Settings
from edgekd.search.space import Arch
from tests.search.test_space import space_of

EVALUATIONS = 160


def value_of(arch: Arch) -> float:
    """Best where every choice is 2."""
    return -float(sum((choice - 2) ** 2 for choice in arch))


def cost_of(arch: Arch) -> float:
    return float(sum(arch))


def searched(name: str, seed: int = 0) -> Searcher:
    problem = Problem(
        space=space_of("inverted", side=96),
        ranking=RankSum(["value"]),
        fits=lambda arch: True,
        costs=lambda arch: (cost_of(arch),),
    )
    searcher = SEARCHERS.get(name)(problem, Settings(seed=seed, population=16, tournament=5))
    for _ in range(EVALUATIONS // 8):
        asked = searcher.ask(8)
        searcher.tell([Outcome(arch=arch, values=(value_of(arch),), spreads=(0.0,)) for arch in asked])
    return searcher


def found(name: str) -> list[float]:
    return [value_of(outcome.arch) for outcome in searched(name).told]


def hypervolume(searcher: Searcher) -> float:
    """Area that the front of value and cost dominates, up to the worst value and cost of the space."""
    pairs = np.array([(-value_of(outcome.arch), cost_of(outcome.arch)) for outcome in searcher.told])
    front = sorted(tuple(pairs[place]) for place in front_places(pairs))
    worst, dearest, area = 120.0, 100.0, 0.0
    for (loss, cost), following in zip(front, [*(pair[0] for pair in front[1:]), worst], strict=True):
        area += (following - loss) * (dearest - cost)
    return area


def test_evolution_beats_random_sampling_with_the_same_number_of_evaluations() -> None:
    evolved, sampled = found("evolution"), found("random")
    assert max(evolved) > max(sampled)
    assert statistics.fmean(evolved[-30:]) > max(sampled)


def test_nsga2_has_the_widest_front() -> None:
    volumes = {name: hypervolume(searched(name)) for name in ("nsga2", "evolution", "random")}
    assert max(volumes, key=lambda name: volumes[name]) == "nsga2"


def test_random_sampling_draws_what_the_space_draws() -> None:
    space, rng = space_of("inverted", side=96), random.Random(3)
    assert [outcome.arch for outcome in searched("random", seed=3).told][:20] == [space.sample(rng) for _ in range(20)]


def test_the_children_of_evolution_are_neighbours_of_living_parents() -> None:
    told = [outcome.arch for outcome in searched("evolution").told]
    for start in range(16, EVALUATIONS, 8):
        alive = told[start - 16 : start]
        for child in told[start : start + 8]:
            assert any(sum(a != b for a, b in zip(child, parent, strict=True)) == 1 for parent in alive)
