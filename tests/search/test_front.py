"""Fronts and crowding, against definitions spelled out element by element."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.search.front import crowding, front_numbers, front_places, survivors

TABLES = st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=25)


def dominates(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and one != other


@given(TABLES)
@settings(max_examples=60, deadline=None)
def test_fronts_are_what_is_left_when_better_fronts_are_taken_away(table: list[tuple[int, ...]]) -> None:
    left, number = dict(enumerate(table)), 0
    expected = [0] * len(table)
    while left:
        free = [place for place, own in left.items() if not any(dominates(o, own) for o in left.values())]
        for place in free:
            expected[place] = number
            del left[place]
        number += 1
    assert front_numbers(np.array(table, dtype=float)).tolist() == expected


def test_equal_candidates_share_the_front() -> None:
    assert front_places(np.array([[1.0, 2.0], [1.0, 2.0], [2.0, 1.0], [2.0, 3.0]])) == [0, 1, 2]


def test_crowding_is_the_distance_of_the_neighbours_in_shares_of_the_range() -> None:
    front = np.array([[0.0, 10.0], [1.0, 6.0], [3.0, 2.0], [4.0, 0.0]])
    apart = crowding(front)
    assert apart[[0, 3]].tolist() == [np.inf, np.inf]
    assert apart[1] == pytest.approx(3 / 4 + 8 / 10)
    assert apart[2] == pytest.approx(3 / 4 + 6 / 10)


def test_an_objective_that_is_the_same_for_all_separates_nobody() -> None:
    assert np.isfinite(crowding(np.array([[0.0, 5.0], [1.0, 5.0], [2.0, 5.0]]))[1])


def test_survivors_are_the_first_fronts_and_the_least_crowded_of_the_last() -> None:
    objectives = np.array([[0.0, 4.0], [4.0, 0.0], [1.0, 3.0], [1.1, 2.9], [5.0, 5.0]])
    assert set(survivors(objectives, 2)) == {0, 1}
    assert 4 not in survivors(objectives, 4)
    assert sorted(survivors(objectives, 9)) == [0, 1, 2, 3, 4]
