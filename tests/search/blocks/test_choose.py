from __future__ import annotations

import itertools
import math
import random

import pytest

from edgekd.search.blocks.choose import Choice, best_sets


def every_set(
    choices: list[Choice], blocks: int, limits: tuple[float, ...], apart: tuple[tuple[int, int], ...] = ()
) -> list[tuple[float, tuple[int, ...]]]:
    """All sets within the limits by trying all of them, with their scores, best first."""
    found = []

    def extend(at: int, taken: tuple[int, ...]) -> None:
        if at == blocks:
            together = any(one in taken and other in taken for one, other in apart)
            if not together and all(sum(choices[i].costs[k] for i in taken) <= limit for k, limit in enumerate(limits)):
                found.append((sum(choices[i].score for i in taken), taken))
            return
        for index, choice in enumerate(choices):
            if choice.first == at:
                extend(choice.last + 1, (*taken, index))

    extend(0, ())
    return sorted(found)


def an_instance(seed: int, blocks: int) -> list[Choice]:
    """Keeping each block, and random replacements of random runs."""
    rng = random.Random(seed)
    choices = [Choice(first=i, last=i, score=0.0, costs=(1.0, 10.0)) for i in range(blocks)]
    for _ in range(3 * blocks):
        first = rng.randrange(blocks)
        last = min(blocks - 1, first + rng.randrange(4))
        costs = (rng.uniform(0, last - first + 1), rng.uniform(0, 20))
        choices.append(Choice(first=first, last=last, score=rng.expovariate(1), costs=costs))
    return choices


@pytest.mark.parametrize("seed", range(12))
def test_the_choice_is_the_best_of_all_that_there_are(seed: int) -> None:
    blocks = 3 + seed % 4
    choices = an_instance(seed, blocks)
    for limits in ((0.3 * blocks, 8.0 * blocks), (0.6 * blocks, math.inf), (0.05 * blocks, math.inf)):
        expected = every_set(choices, blocks, limits)
        found = best_sets(choices, blocks, limits, count=4)
        scores = [sum(choices[i].score for i in one) for one in found]
        assert scores == pytest.approx([score for score, _ in expected[:4]], abs=1e-6)
        assert all(sum(choices[i].costs[0] for i in one) <= limits[0] * (1 + 1e-6) for one in found)


@pytest.mark.parametrize("seed", range(4))
def test_what_must_not_stand_together_does_not(seed: int) -> None:
    choices = an_instance(seed, 5)
    (free,) = best_sets(choices, 5, (2.0, math.inf))
    apart = tuple(itertools.pairwise(sorted(free)))
    found = best_sets(choices, 5, (2.0, math.inf), apart=apart)
    expected = every_set(choices, 5, (2.0, math.inf), apart)
    assert sum(choices[i].score for i in found[0]) == pytest.approx(expected[0][0], abs=1e-6)
    assert found[0] != free


def test_sets_differ_by_as_much_as_asked() -> None:
    choices = an_instance(1, 6)
    found = best_sets(choices, 6, (math.inf, math.inf), count=4, differ=3)
    assert len(found) == 4
    assert all(len(set(a) - set(b)) >= 3 for a, b in itertools.combinations(found, 2))


def test_no_set_within_the_limit_gives_none() -> None:
    assert best_sets(an_instance(0, 3), 3, (-1.0, math.inf)) == []


def test_a_whole_network_is_chosen_in_a_moment() -> None:
    choices = an_instance(3, 60)
    (best,) = best_sets(choices, 60, (20.0, math.inf))
    covered = sorted(i for index in best for i in range(choices[index].first, choices[index].last + 1))
    assert covered == list(range(60))
    assert sum(choices[index].costs[0] for index in best) <= 20.0
