"""What the spread over seeds says about an order, checked against what really happens with other seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from edgekd.search.certainty import standing
from edgekd.search.ranking import RankSum
from edgekd.search.searcher import Outcome


class FirstValue:
    """Scores by the first proxy as it is."""

    proxies = ("value",)

    def scores(self, values: Sequence[Sequence[float]]) -> npt.NDArray[np.float64]:
        return np.array([row[0] for row in values])


def outcomes(*pairs: tuple[float, float]) -> list[Outcome]:
    return [Outcome(arch=(n,), values=(value,), spreads=(spread,)) for n, (value, spread) in enumerate(pairs)]


def test_the_spread_of_a_score_is_the_standard_error_of_its_mean() -> None:
    found = standing(FirstValue(), outcomes((1.0, 0.4), (2.0, 0.0)), seeds=4)
    assert found.spread(0) == pytest.approx(0.2, rel=0.25)
    assert found.spread(1) == 0


def test_a_lead_within_the_spread_is_a_toss_up_and_a_larger_one_is_not() -> None:
    found = standing(FirstValue(), outcomes((2.0, 0.4), (1.9, 0.4), (0.0, 0.4)), seeds=4)
    lead, spread = found.lead(0, 1)
    assert lead == pytest.approx(0.1)
    assert spread == pytest.approx(0.2 * 2**0.5, rel=0.25)
    assert found.level_with(0) == [1]


def test_values_without_spread_leave_no_doubt() -> None:
    found = standing(RankSum(["a"]), outcomes((2.0, 0.0), (1.0, 0.0)), seeds=5)
    assert len(found.redrawn) == 0
    assert found.spread(0) == 0
    assert found.level_with(0) == []


def test_ranks_that_no_redraw_changes_have_no_spread_at_all() -> None:
    found = standing(RankSum(["a"]), outcomes((2.0, 1e-6), (1.0, 1e-6), (0.3, 0.0)), seeds=5)
    assert len(found.redrawn) > 0
    assert [found.spread(place) for place in range(3)] == [0, 0, 0]
    assert found.lead(0, 1)[1] == 0


def test_a_single_student_stands_alone() -> None:
    assert standing(FirstValue(), outcomes((2.0, 0.1)), seeds=5).level_with(0) == []


def test_the_spread_of_ranks_is_near_that_of_searches_with_other_seeds() -> None:
    rng = np.random.default_rng(7)
    truth, sigma, seeds = np.linspace(0, 1, 12), 0.2, 5
    ranking = RankSum(["a"])

    def search() -> list[Outcome]:
        drawn = truth[:, None] + sigma * rng.standard_normal((12, seeds))
        return outcomes(*[(float(row.mean()), float(row.std(ddof=1))) for row in drawn])

    others = [ranking.scores([outcome.values for outcome in search()])[6] for _ in range(200)]
    claimed = np.mean([standing(ranking, search(), seeds=seeds).spread(6) for _ in range(20)])
    assert claimed == pytest.approx(float(np.std(others)), rel=0.5)
