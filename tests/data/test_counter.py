from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgekd.data.counter import hashed, integers, permutation, uniform

GOLDEN = ["0391a731bc320155", "d3515628753488b8", "c1c9a3cd465c189c"]
IDS = np.arange(20_000, dtype=np.int64)


def test_the_first_words_are_golden_so_that_old_checkpoints_resume_to_the_same_crops() -> None:
    assert [f"{int(word):016x}" for word in hashed(np.arange(3, dtype=np.int64), 7, 1)] == GOLDEN


def test_uniform_numbers_fill_the_unit_interval_evenly() -> None:
    numbers = uniform(IDS, 0, 0)
    counts, _ = np.histogram(numbers, bins=20, range=(0, 1))
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert abs(counts - 1000).max() < 150


def test_streams_seeds_and_their_order_give_unrelated_numbers() -> None:
    base = uniform(IDS, 1, 2)
    for other in (uniform(IDS, 2, 1), uniform(IDS, 1, 3), uniform(IDS, 1), uniform(IDS + 1, 1, 2)):
        assert abs(np.corrcoef(base, other)[0, 1]) < 0.03


def test_negative_seeds_are_taken() -> None:
    assert not np.array_equal(hashed(IDS, -1), hashed(IDS, 1))


@given(st.integers(1, 1000), st.integers(0, 2**40))
def test_integers_stay_below_their_limit(high: int, seed: int) -> None:
    numbers = integers(IDS[:100], high, seed)
    assert numbers.min() >= 0
    assert numbers.max() < high


@given(st.integers(0, 200), st.integers(0, 1000))
def test_a_permutation_holds_every_number_once(n: int, seed: int) -> None:
    assert sorted(permutation(n, seed)) == list(range(n))
