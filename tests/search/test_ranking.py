from __future__ import annotations

from edgekd.search.ranking import rank_sums


def test_ranks_add_over_proxies_and_ties_share_their_mean() -> None:
    sums = rank_sums([(1.0, 10.0), (1.0, 30.0), (5.0, 20.0)])
    assert sums.tolist() == [0.25 + 0.0, 0.25 + 1.0, 1.0 + 0.5]


def test_the_rank_of_a_single_candidate_is_finite() -> None:
    assert rank_sums([(3.0,)]).tolist() == [0.0]
