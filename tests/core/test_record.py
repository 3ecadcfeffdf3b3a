from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.core.digest import Digest, digest
from edgekd.core.record import InputRef, Record, RunKey
from edgekd.core.store import MemoryStore
from edgekd.errors import UserError
from edgekd.testing.conformance_store import make_record

ONE, TWO = digest("test", 1), digest("test", 2)


def ref(source: str, content: Digest, name: str | None = None) -> InputRef:
    return InputRef(source=source, content=content, name=name)


INPUTS = {"student": (ref("pick", ONE),), "teacher": (ref("@teacher", TWO),)}


def key(**changes: Any) -> RunKey:
    base: dict[str, Any] = {
        "stage": "distill",
        "version": 1,
        "config": {"epochs": 3, "augment": {"flip": True}},
        "inputs": INPUTS,
        "resources": {"data": ONE},
        "seed": 0,
    }
    return RunKey(**{**base, **changes})


def test_the_key_is_what_it_was_when_the_stores_of_our_users_were_written() -> None:
    assert key().digest == "38e2484a725f37d3d37f807e5f30671c0c4e9766337583108bcccff061c2accd"
    named = {"candidates": (ref("a", ONE, name="a"), ref("b", TWO, name="b"))}
    assert key(inputs=named).digest == "d08de496fc3f5387a064ff4f0640354b2990d64de1e3db584f368c30de67dcfd"


def test_a_source_that_the_stage_cannot_see_by_name_is_no_part_of_the_key() -> None:
    renamed = {**INPUTS, "student": (ref("other", ONE),)}
    assert key(inputs=renamed).digest == key().digest
    assert key(inputs={"c": (ref("a", ONE, name="a"),)}).digest != key(inputs={"c": (ref("b", ONE, name="b"),)}).digest


@pytest.mark.parametrize(
    ("changes", "phrases"),
    [
        ({}, ()),
        ({"stage": "prune", "seed": 5}, ("stage distill -> prune",)),
        ({"version": 2}, ("stage version 1 -> 2",)),
        ({"config": {"epochs": 5, "augment": {"flip": True}}}, ("config.epochs 3 -> 5",)),
        ({"config": {"epochs": 3, "augment": {"flip": 1}}}, ("config.augment.flip true -> 1",)),
        (
            {"config": {"epochs": 3.0, "augment": {}}},
            ("config.augment.flip removed (was true)", "config.epochs 3 -> 3.0"),
        ),
        ({"config": {"epochs": 3, "augment": {"flip": True}, "lr": 0.1}}, ("config.lr added (0.1)",)),
        ({"inputs": {**INPUTS, "student": (ref("pick", TWO),)}}, ("input student changed (node pick)",)),
        ({"inputs": {**INPUTS, "teacher": (ref("@teacher", ONE),)}}, ("input teacher changed (@teacher)",)),
        ({"inputs": {"student": (ref("pick", ONE),)}}, ("input teacher disconnected (was @teacher)",)),
        ({"inputs": {**INPUTS, "hint": (ref("h", ONE),)}}, ("input hint connected (node h)",)),
        ({"resources": {"data": TWO}}, ("resource data changed",)),
        ({"seed": 7}, ("seed 0 -> 7",)),
    ],
)
def test_each_change_is_named(changes: dict[str, Any], phrases: tuple[str, ...]) -> None:
    assert key(**changes).changes_since(key()) == phrases


def test_of_many_sources_only_those_that_changed_are_named() -> None:
    before = key(inputs={"c": (ref("a", ONE, "a"), ref("b", ONE, "b"))})
    assert key(inputs={"c": (ref("a", ONE, "a"), ref("b", TWO, "b"))}).changes_since(before) == (
        "input c changed (node b)",
    )
    assert key(inputs={"c": (ref("a", ONE, "a"),)}).changes_since(before) == ("input c lost sources or their order",)


def test_long_values_are_cut() -> None:
    (phrase,) = key(config={"x": list(range(100))}).changes_since(key(config={"x": [1]}))
    assert phrase == "config.x [1] -> [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11..."


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([0.0, -0.0, 1.0, 0.5])
    | st.sampled_from(["", "1"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
    max_leaves=4,
)
keys = st.builds(
    RunKey,
    stage=st.sampled_from(["x", "y"]),
    version=st.integers(1, 2),
    config=st.dictionaries(st.sampled_from("abc"), json_values, max_size=2),
    inputs=st.dictionaries(
        st.sampled_from("pq"),
        st.lists(
            st.builds(
                InputRef, source=st.just("n"), content=st.sampled_from([ONE, TWO]), name=st.sampled_from([None, "n"])
            ),
            min_size=1,
            max_size=2,
        ).map(tuple),
        max_size=2,
    ),
    resources=st.dictionaries(st.sampled_from(["data"]), st.sampled_from([ONE, TWO])),
    seed=st.integers(0, 1),
)


@settings(deadline=None)
@given(keys, keys)
def test_two_keys_have_one_digest_exactly_when_there_is_nothing_to_say(one: RunKey, other: RunKey) -> None:
    assert (one.digest == other.digest) == (one.changes_since(other) == ())


@settings(deadline=None)
@given(keys)
def test_a_key_keeps_its_digest_through_json(one: RunKey) -> None:
    assert RunKey.parse(json.loads(json.dumps(one.plain())), "key").digest == one.digest


def test_ports_that_are_not_known_yet_can_be_left_out_of_a_comparison() -> None:
    partial = key(inputs={"teacher": (ref("@teacher", TWO),)})
    assert partial.changes_since(key().at_ports_of(partial)) == ()
    changed = key(inputs={"teacher": (ref("@teacher", ONE),)})
    assert changed.changes_since(key().at_ports_of(changed)) == ("input teacher changed (@teacher)",)


def test_a_record_survives_json_and_unknown_keys_are_refused(tmp_path: Path) -> None:
    record = make_record(MemoryStore(tmp_path), tmp_path)
    data = json.loads(record.to_json())
    assert Record.parse(data, "record") == record
    with pytest.raises(UserError, match="unknown key 'extra'"):
        Record.parse({**data, "extra": 1}, "record")
    with pytest.raises(UserError, match="schema_version"):
        Record.parse({**data, "schema_version": 2}, "record")
