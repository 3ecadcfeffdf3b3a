from __future__ import annotations

import json
import random
import statistics
from collections.abc import Callable

from edgekd.search.searcher import AgingEvolution, EvolutionState
from edgekd.search.space import Arch
from tests.search.test_space import space_of


def value_of(arch: Arch) -> float:
    """Best where every choice is 2."""
    return -float(sum((choice - 2) ** 2 for choice in arch))


def evolution(*, fits: Callable[[Arch], bool] = lambda arch: True, seed: int = 0) -> AgingEvolution:
    return AgingEvolution(space_of("residual"), population=12, tournament=4, fits=fits, seed=seed)


def advance(search: AgingEvolution, steps: int) -> list[Arch]:
    asked = []
    for _ in range(steps):
        arch = search.ask()
        assert arch is not None
        search.tell(arch, (value_of(arch),))
        asked.append(arch)
    return asked


def test_evolution_beats_random_sampling_with_the_same_number_of_evaluations() -> None:
    space, rng = space_of("inverted", side=96), random.Random(0)
    search = AgingEvolution(space, population=12, tournament=4, fits=lambda arch: True, seed=0)
    found = [value_of(arch) for arch in advance(search, 150)]
    sampled = [value_of(space.sample(rng)) for _ in range(150)]
    assert max(found) > max(sampled)
    assert statistics.fmean(found[-30:]) > max(sampled)


def test_equal_seeds_ask_for_the_same_architectures() -> None:
    assert advance(evolution(), 40) == advance(evolution(), 40)
    assert advance(evolution(seed=1), 40) != advance(evolution(), 40)


def test_nothing_is_asked_for_twice() -> None:
    asked = advance(evolution(), 80)
    assert len(set(asked)) == len(asked)


def test_a_restored_search_goes_on_as_the_uninterrupted_one() -> None:
    whole = advance(evolution(), 50)
    first = evolution()
    advance(first, 23)
    saved = EvolutionState.parse(json.loads(json.dumps(first.state().plain())), "state")
    second = evolution(seed=99)
    second.restore(saved)
    assert advance(second, 27) == whole[23:]


def test_only_architectures_that_fit_are_proposed_and_the_others_are_counted() -> None:
    search = evolution(fits=lambda arch: sum(arch) <= 5)
    asked = advance(search, 30)
    assert all(sum(arch) <= 5 for arch in asked)
    assert search.rejected > 0


def test_an_exhausted_space_ends_the_search() -> None:
    search = evolution(fits=lambda arch: sum(arch) <= 1)
    reachable = len(search.space.cheapest) + 1
    asked = []
    while (arch := search.ask()) is not None:
        search.tell(arch, (0.0,))
        asked.append(arch)
    assert 0 < len(asked) <= reachable
