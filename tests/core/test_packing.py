"""Timings as text: nothing is lost, and what is damaged is refused."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.core.packing import packed, unpacked


@given(st.lists(st.lists(st.integers(0, 2**62), max_size=20), max_size=10))
def test_what_is_unpacked_is_what_was_packed(rounds: list[list[int]]) -> None:
    assert unpacked(packed(rounds)) == rounds


def test_an_empty_text_holds_no_rounds() -> None:
    assert unpacked("") == []


def test_timings_take_a_fifth_of_their_json() -> None:
    rng = random.Random(0)
    rounds = [[1_000_000 + round(rng.gauss(0, 3000)) for _ in range(30)] for _ in range(100)]
    text = packed(rounds)
    assert len(text) < 10_000
    assert len(text) < len(json.dumps([ns / 1e6 for values in rounds for ns in values])) / 3


@pytest.mark.parametrize("damaged", ["no base64!", "AAAA", packed([[1, 2, 3]])[:-8]])
def test_damaged_text_is_refused(damaged: str) -> None:
    with pytest.raises(ValueError, match=r"damaged|base64|padding|Only"):
        unpacked(damaged)


def test_a_text_that_ends_within_a_round_is_refused() -> None:
    import base64
    import zlib

    short = base64.b64encode(zlib.compress(bytes([3, 2, 2]))).decode()
    with pytest.raises(ValueError, match="damaged"):
        unpacked(short)
