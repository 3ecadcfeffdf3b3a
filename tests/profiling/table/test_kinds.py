"""Which engines a table is made of."""

from __future__ import annotations

import pytest

from edgekd.profiling.table.kinds import spread, within
from tests.prune.blocks import Planted


def test_groups_that_cost_the_same_are_one_kind_and_the_largest_saving_comes_first() -> None:
    first, second = Planted().kinds()
    assert [group.name for group in first.groups] == ["first.conv1", "second.conv1"]
    assert [group.name for group in second.groups] == ["third.conv1"]
    assert first.words == "first.conv1 and 1 more like it"
    assert second.words == "third.conv1"
    assert 1 > first.saves > second.saves > 0
    assert first.kept == (56, 48, 40, 32, 24, 16, 8)


def test_a_width_without_a_narrower_multiple_is_not_timed() -> None:
    assert [kind.groups[0].name for kind in Planted().kinds(multiple=64)] == ["third.conv1"]


def test_kinds_at_the_end_get_fewer_engines_and_then_none() -> None:
    kinds = Planted().kinds()
    timed, left_out = within(kinds, widths=4, engines=6)
    assert [len(kind.kept) for kind in timed] == [4, 2]
    assert left_out == ()
    timed, left_out = within(kinds, widths=4, engines=4)
    assert [kind.groups[0].name for kind in left_out] == ["third.conv1"]
    assert timed[0].kept == (56, 40, 24, 8)


@pytest.mark.parametrize(("most", "expected"), [(9, (5, 4, 3, 2, 1)), (3, (5, 3, 1)), (2, (5, 1)), (1, (1,)), (0, ())])
def test_widths_are_spread_with_the_narrowest_first_of_all(most: int, expected: tuple[int, ...]) -> None:
    assert spread((5, 4, 3, 2, 1), most) == expected
