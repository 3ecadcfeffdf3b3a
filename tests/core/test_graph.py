from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.core.bundle import BundleKind
from edgekd.core.graph import Graph, Node, validate_graph
from edgekd.errors import UserError
from tests.core.fakes import STAGES, graph


def names(of: Graph) -> list[str]:
    return [step.name for step in validate_graph(of, STAGES)]


def append(name: str, *sources: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "stage": "append", "inputs": {"model": list(sources)} if sources else {}, **more}


def refusal(of: Graph) -> str:
    with pytest.raises(UserError) as caught:
        validate_graph(of, STAGES)
    return str(caught.value)


def test_nodes_run_after_their_sources_and_otherwise_as_listed() -> None:
    assert names(graph(append("c", "b"), append("x"), append("b", "a"), append("a"), append("y"))) == list("xabcy")


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_any_graph_without_a_cycle_is_ordered_and_an_order_that_works_is_kept(seed: int, n: int) -> None:
    rng = random.Random(seed)
    nodes = [append(f"n{i}", *([f"n{rng.randrange(i)}"] if i and rng.random() < 0.8 else [])) for i in range(n)]
    assert names(graph(*nodes)) == [f"n{i}" for i in range(n)]
    rng.shuffle(nodes)
    order = names(graph(*nodes))
    for node in graph(*nodes).nodes:
        assert all(order.index(source) < order.index(node.name) for source in node.sources)


def test_steps_carry_their_stage_with_its_config_filled_in() -> None:
    (step,) = validate_graph(graph(append("a")), STAGES)
    assert step.stage.config.plain() == {"letters": "a"}


def test_one_source_needs_no_list() -> None:
    assert Node(name="a", stage="append", inputs={"model": "b"}).inputs == {"model": ("b",)}


def test_a_graph_survives_its_plain_form() -> None:
    made = graph(append("a", "@teacher"), append("b", "a"), inputs={"teacher": "torch"})
    assert Graph.parse(made.plain(), "graph") == made
    assert made.inputs == {"teacher": BundleKind.TORCH}


@pytest.mark.parametrize("name", ["", "A", "a b", "../a", "a/b", "a.b", "-a", "@a", "all", "a" * 65])
def test_a_node_name_is_safe_as_a_file_name_and_as_an_override_key(name: str) -> None:
    with pytest.raises(UserError, match="name"):
        graph(append(name))


def test_names_are_unique_among_nodes_and_inputs() -> None:
    assert "'a' is taken: another node" in refusal(graph(append("a"), append("a")))
    assert "'t' is taken: an input" in refusal(graph(append("t"), inputs={"t": "torch"}))


def test_an_unknown_stage_is_answered_with_the_near_one() -> None:
    text = refusal(graph(append("a", stage="apend")))
    assert "Node 'a': unknown stage 'apend'. Did you mean 'append'?" in text
    assert "hint: known: append, first" in text


def test_an_unknown_config_key_is_answered_with_the_near_one_and_the_node() -> None:
    text = refusal(graph(append("a", config={"leters": "x"})))
    assert text == "node 'a', config: unknown key 'leters'. Did you mean 'letters'?"


def test_an_unknown_port_is_answered_with_the_near_one() -> None:
    text = refusal(graph({"name": "a", "stage": "append", "inputs": {"modle": ["b"]}}))
    assert "stage 'append' has no port 'modle'. Did you mean 'model'?" in text


def test_a_port_that_is_not_optional_must_be_connected() -> None:
    text = refusal(graph({"name": "f", "stage": "first"}))
    assert "Node 'f': port 'model' of stage 'first' is not connected." in text
    assert "it takes torch" in text
    assert "is not connected" in refusal(graph({"name": "m", "stage": "measure", "inputs": {"candidates": []}}))


def test_only_a_port_for_many_takes_many_and_each_only_once() -> None:
    assert "takes one source, got 2: a, b" in refusal(graph(append("a"), append("b"), append("c", "a", "b")))
    twice = {"name": "m", "stage": "measure", "inputs": {"candidates": ["a", "a"]}}
    assert "names a source twice" in refusal(graph(append("a"), twice))


def test_unknown_sources_are_answered_with_the_near_one() -> None:
    assert "'distil', which is not a node. Did you mean 'distill'?" in refusal(
        graph(append("distill"), append("b", "distil"))
    )
    assert "'@teecher', which is not an input of the graph. Did you mean '@teacher'?" in refusal(
        graph(append("a", "@teecher"), inputs={"teacher": "torch"})
    )
    assert "write '@teacher'" in refusal(graph(append("a", "teacher"), inputs={"teacher": "torch"}))


def test_a_port_refuses_the_wrong_kind_and_says_who_gives_what() -> None:
    assert "port 'model' of stage 'append' takes torch, but the graph input '@d' gives data." in refusal(
        graph(append("a", "@d"), inputs={"d": "data"})
    )
    measured = {"name": "m", "stage": "measure", "inputs": {"candidates": ["a"]}}
    assert "takes torch, but node 'm' (stage 'measure') gives report." in refusal(
        graph(append("a"), measured, append("b", "m"))
    )


def test_a_cycle_is_named_in_the_direction_of_its_edges() -> None:
    text = refusal(graph(append("s"), append("a", "c"), append("b", "a"), append("c", "b"), append("d", "c")))
    assert text in {f"The graph has a cycle: {' -> '.join(c)}." for c in ("abca", "bcab", "cabc")}
    assert refusal(graph(append("a", "a"))) == "The graph has a cycle: a -> a."


def test_a_stage_does_not_come_before_one_that_it_never_may_even_far_down_a_path() -> None:
    exported = {"name": "e", "stage": "export", "inputs": {"model": ["a"]}}
    between = {"name": "f", "stage": "first", "inputs": {"model": ["e"]}}
    text = refusal(graph(append("a"), exported, between, append("z", "f")))
    assert "Node 'e' (stage 'export') must not come before node 'z' (stage 'append'): e -> f -> z." in text
    assert "move 'z' before 'e'" in text
    assert names(graph(append("a"), exported, append("z", "a"))) == ["a", "e", "z"]
