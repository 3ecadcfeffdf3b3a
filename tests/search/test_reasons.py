"""The sentence behind a pick, for every way in which a lead can be worth something or nothing."""

from __future__ import annotations

import numpy as np
import pytest

from edgekd.search.certainty import Standing
from edgekd.search.reasons import Chance, Order


def order(
    scores: list[float], *, redrawn: list[list[float]] | None = None, chance: Chance = "known", kept: bool = True
) -> Order:
    tables = np.empty((0, len(scores))) if redrawn is None else np.array(redrawn)
    return Order(
        standing=Standing(scores=np.array(scores), redrawn=tables),
        places=sorted(range(len(scores)), key=lambda place: -scores[place]),
        texts=[f"student {place}" for place in range(len(scores))],
        chance=chance,
        seeds=5,
        kept=kept,
    )


TWO = [1.0, 3.0, 2.5]


@pytest.mark.parametrize(
    ("redrawn", "said"),
    [
        ([[1.0, 3.0, 2.0], [1.0, 2.0, 3.0]], "so it is a toss-up with this one."),
        ([[5.0, 3.0, 2.0], [1.0, 4.0, 6.0]], "so it is a toss-up with 2 students."),
        ([[1.0, 3.1, 2.5], [1.0, 2.9, 2.5]], "would move that by about 0.100, which is less."),
        ([[1.0, 3.0, 2.5], [1.0, 3.0, 2.5]], "the differences between these 5 seeds are too small to change that."),
    ],
)
def test_a_lead_is_compared_with_what_other_seeds_would_change(redrawn: list[list[float]], said: str) -> None:
    reason = order(TWO, redrawn=redrawn).reason(0)
    assert reason.startswith(
        "It has the highest score of 3 students within the limit, 0.500 ahead of the next one (student 2);"
    )
    assert reason.endswith(said)


@pytest.mark.parametrize(
    ("chance", "said"),
    [("none", "no random draw takes part in this ranking."), ("unknown", "with a single seed nobody knows how much")],
)
def test_without_a_spread_nothing_is_claimed_of_it(chance: Chance, said: str) -> None:
    assert said in order(TWO, chance=chance).reason(0)


def test_equal_scores_are_decided_by_size_and_that_is_said() -> None:
    reason = order([2.0, 2.0], chance="none").reason(0)
    assert "level with the next one (student 1); fewer multiply-accumulates decide." in reason


def test_later_picks_are_compared_with_the_first() -> None:
    assert (
        order(TWO, chance="none")
        .reason(1)
        .startswith("It is number 2 of 3 students within the limit, 0.500 behind the first;")
    )


def test_a_lone_student_and_one_over_the_limit_say_so() -> None:
    assert order([1.0]).reason(0) == "It is the only student within the limit that could be scored."
    assert order([1.0], kept=False).reason(0) == "It is the cheapest student: none keeps the limit."
