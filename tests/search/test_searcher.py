"""Every registered searcher keeps the contract; and the choice of one."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from edgekd.errors import UserError
from edgekd.search.ranking import RankSum
from edgekd.search.searcher import SEARCHERS, Problem, Settings, chosen_searcher
from edgekd.search.space import Arch
from edgekd.testing.conformance_searcher import SearcherConformance, toy_space
from tests.search.test_space import space_of


class TestEvolution(SearcherConformance):
    name = "evolution"


class TestNSGA2(SearcherConformance):
    name = "nsga2"


class TestRandom(SearcherConformance):
    name = "random"


class TestExhaustive(SearcherConformance):
    name = "exhaustive"


def problem(fits: Callable[[Arch], bool] = lambda arch: True, name: str = "residual") -> Problem:
    return Problem(space=space_of(name), ranking=RankSum(["x"]), fits=fits, costs=lambda arch: (0.0,))


def test_every_registered_searcher_is_covered_by_the_suite() -> None:
    assert {suite.name for suite in SearcherConformance.__subclasses__()} == set(SEARCHERS)


def test_few_students_that_fit_are_searched_exhaustively_and_that_is_said() -> None:
    name, why = chosen_searcher("auto", problem(lambda arch: sum(arch) <= 1), evaluations=200)
    assert name == "exhaustive"
    assert re.search(r"only \d of 864 students fit", why)


def test_more_students_than_evaluations_are_evolved() -> None:
    name, why = chosen_searcher("auto", problem(), evaluations=50)
    assert name == "evolution"
    assert "more than 50" in why
    assert "--searcher nsga2" in why


def test_a_large_space_is_not_counted() -> None:
    def fits(arch: Arch) -> bool:
        raise AssertionError("counting takes too long here")

    assert chosen_searcher("auto", problem(fits, "inverted"), evaluations=200)[0] == "evolution"


def test_a_searcher_that_is_asked_for_is_taken() -> None:
    assert chosen_searcher("random", problem(), evaluations=50)[0] == "random"


def test_an_unknown_searcher_is_answered_with_the_near_one() -> None:
    with pytest.raises(UserError, match="Did you mean 'nsga2'"):
        chosen_searcher("nsga3", problem(), evaluations=50)


def test_a_large_space_is_not_searched_exhaustively() -> None:
    with pytest.raises(UserError, match="is not searched exhaustively") as refused:
        SEARCHERS.get("exhaustive")(problem(name="inverted"), Settings())
    assert "--searcher evolution" in str(refused.value.hint)


def test_networks_with_several_names_count_once() -> None:
    space = toy_space()
    names = {space.recipe(arch).digest for arch in space.architectures()}
    assert len(names) < space.size
    count = len(names)
    everything = Problem(space=space, ranking=RankSum(["x"]), fits=lambda arch: True, costs=lambda arch: (0.0,))
    assert chosen_searcher("auto", everything, evaluations=count)[0] == "exhaustive"


def test_only_neighbours_of_what_fits_are_looked_at() -> None:
    looked: list[Arch] = []

    def fits(arch: Arch) -> bool:
        looked.append(arch)
        return sum(arch) <= 1

    space = space_of("inverted")
    fitting = [arch for arch, kept in problem(fits, "inverted").explored() if kept]
    axes = sum(len(axis) > 1 for axis in space.axes.values())
    assert len(fitting) == 1 + axes
    assert len(looked) < (1 + axes) ** 2
    assert all(sum(arch) <= 2 for arch in looked)
