from __future__ import annotations

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgekd.data.splitting import HOLDOUT_SHARES, dealt, repeated


def _keys(n: int, start: int = 0) -> list[bytes]:
    return [hashlib.sha256(str(number).encode()).digest() for number in range(start, start + n)]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=120), st.integers(0, 5))
def test_every_row_lands_in_exactly_one_part(labels: list[int], seed: int) -> None:
    parts = dealt(_keys(len(labels)), np.array(labels), HOLDOUT_SHARES, seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))


@given(st.lists(st.integers(0, 12), min_size=3, max_size=80), st.integers(0, 5))
def test_equal_images_never_stand_on_both_sides_of_a_cut(contents: list[int], seed: int) -> None:
    keys = [_keys(13)[content] for content in contents]
    parts = dealt(keys, None, (0.6, 0.2, 0.2), seed)
    seen = [{keys[row] for row in part} for part in parts]
    assert sum(len(part) for part in seen) == len(set.union(*seen))


def test_shares_hold_within_each_class() -> None:
    labels = np.repeat([0, 1], [200, 40])
    _, select, test = dealt(_keys(240), labels, HOLDOUT_SHARES, 0)
    assert np.bincount(labels[select]).tolist() == [20, 4]
    assert np.bincount(labels[test]).tolist() == [20, 4]


def test_a_class_of_three_has_one_image_in_each_part_and_a_class_of_two_only_trains() -> None:
    labels = np.array([0, 0, 0, 1, 1])
    parts = dealt(_keys(5), labels, HOLDOUT_SHARES, 0)
    assert [sorted(labels[part].tolist()) for part in parts] == [[0, 1, 1], [0], [0]]


def test_the_split_follows_the_content_and_not_the_order() -> None:
    keys = _keys(50)
    order = np.random.default_rng(0).permutation(50)
    straight = dealt(keys, None, (0.5, 0.5), 3)[0]
    shuffled = dealt([keys[i] for i in order], None, (0.5, 0.5), 3)[0]
    assert {keys[row] for row in straight} == {keys[order[row]] for row in shuffled}


def test_one_more_image_moves_at_most_one_other_across_each_cut() -> None:
    keys = _keys(100)
    before = dealt(keys, None, HOLDOUT_SHARES, 0)
    after = dealt([*keys, *_keys(1, 1000)], None, HOLDOUT_SHARES, 0)
    for old, new in zip(before, after, strict=True):
        assert len(set(old.tolist()) - set(new.tolist())) <= 1


def test_another_seed_gives_another_split() -> None:
    assert dealt(_keys(50), None, (0.5, 0.5), 0)[0].tolist() != dealt(_keys(50), None, (0.5, 0.5), 1)[0].tolist()


def test_repeated_images_are_counted() -> None:
    assert repeated(_keys(10), _keys(10, 7)) == 3
