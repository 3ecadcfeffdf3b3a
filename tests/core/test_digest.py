from __future__ import annotations

import hashlib
import math
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.core.digest import Json, digest, file_digest, is_digest

scalars = st.sampled_from([None, True, False, 0, 1, -1, 10**30, 0.0, 1.0, 0.1, "", "a", "1", "N;", "é", b"", b"a"])
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["", "a", "b"]), inner, max_size=3),
    max_leaves=6,
)


def test_golden_digests_hold_the_encoding() -> None:
    assert digest("tag") == "d171a97dafde0070c5e0fc666720b079561dc625c4ed687b167da063df4d7d05"
    assert (
        digest("tag", None, True, 1, 1.5, "a", b"a")
        == "166947c6c0bbfa7b20e2a01f1cedb09aa9daa4802ec5adb38c45f11b9664dfe1"
    )
    assert digest("tag", {"b": [1, 2], "a": {}}) == "0194a115c446170efa8f5c41b0b926a2d66dd7f27ff66519f6a45ce99c289d7b"


def test_the_encoding_is_the_documented_one() -> None:
    encoded = b"edgekd-digest-1" + b"l6:" + b"s3:tag" + b"N;" + b"T;" + b"i-7;" + b"f" + struct.pack(">d", 0.5)
    encoded += b"m2:" + b"s1:a" + b"l1:" + b"b2:xy" + b"s1:b" + b"s2:" + "é".encode()
    value: Json = {"b": "é", "a": [b"xy"]}
    assert digest("tag", None, True, -7, 0.5, value) == hashlib.sha256(encoded).hexdigest()


@settings(deadline=None)
@given(values, values)
def test_two_values_have_one_digest_exactly_when_type_and_content_agree(one: Json, other: Json) -> None:
    assert (digest("t", one) == digest("t", other)) == (typed(one) == typed(other))


def typed(value: object) -> str:
    """A text that tells types apart, and does not depend on the order of keys."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key!r}:{typed(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(typed, value)) + "]"
    return f"{type(value).__name__} {value!r}"


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, 1.0), (1, True), (1, "1"), (0, False), (None, ""), ("a", b"a"), (["a", "b"], ["ab"]), ([[1], 2], [1, [2]])],
)
def test_values_that_look_alike_differ(one: Json, other: Json) -> None:
    assert digest("t", one) != digest("t", other)


def test_what_compares_equal_is_equal() -> None:
    assert digest("t", -0.0) == digest("t", 0.0)
    assert digest("t", (1, 2)) == digest("t", [1, 2])
    assert digest("t", {"a": 1, "b": 2}) == digest("t", {"b": 2, "a": 1})
    assert digest("t", math.nan) == digest("t", math.nan)


def test_a_tag_and_the_number_of_values_set_digests_apart() -> None:
    assert len({digest("a", 1), digest("b", 1), digest("a", [1]), digest("a", 1, None), digest("a")}) == 5


def test_other_types_are_refused_with_the_place_where_they_stand() -> None:
    with pytest.raises(TypeError, match=r"value\[1\]\.a\[0\] is a set"):
        digest("t", {"a": [{1}]})  # type: ignore[list-item]
    with pytest.raises(TypeError, match="key 1 of type int"):
        digest("t", {1: 2})  # type: ignore[dict-item]


def test_a_file_digest_is_what_sha256sum_prints(tmp_path: Path) -> None:
    path = tmp_path / "big"
    path.write_bytes(b"x" * (2**20 + 5))
    assert file_digest(path) == hashlib.sha256(b"x" * (2**20 + 5)).hexdigest()
    assert is_digest(file_digest(path))


@pytest.mark.parametrize("text", ["", "a" * 63, "A" * 64, "g" * 64])
def test_other_texts_are_no_digests(text: str) -> None:
    assert not is_digest(text)
