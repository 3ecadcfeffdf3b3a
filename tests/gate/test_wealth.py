"""Betting: fair games seldom make rich, favourable ones do."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.gate.wealth import STAKES, Wealth, p_value_of


def test_a_gambler_who_has_not_played_has_no_evidence() -> None:
    assert Wealth().p_value == 1.0


def test_one_game_multiplies_the_capital_by_the_average_stake() -> None:
    wealth = Wealth()
    wealth.add(1.0)
    assert wealth.p_value == pytest.approx(1 / (1 + sum(STAKES) / len(STAKES)))


def test_a_fair_game_watched_at_every_step_seldom_reaches_a_hundredfold() -> None:
    rng = random.Random(0)
    reached = 0
    for _ in range(200):
        wealth = Wealth()
        for _ in range(100):
            wealth.add(rng.choice((-1.0, 1.0)))
            if wealth.p_value <= 0.01:
                reached += 1
                break
    assert reached <= 5, "Ville: at most one in a hundred, and chance"


def test_a_favourable_game_reaches_it_soon_and_a_losing_one_never() -> None:
    assert p_value_of([1.0] * 10) < 0.01
    assert p_value_of([-1.0] * 10) == 1.0


def test_early_luck_is_not_decisive_for_ever() -> None:
    assert p_value_of([1.0] * 10 + [-1.0] * 30) > 0.01


@given(st.lists(st.floats(-1, 1), max_size=400))
def test_a_p_value_is_a_probability_however_long_the_game(gains: list[float]) -> None:
    assert 0 <= p_value_of(gains) <= 1
