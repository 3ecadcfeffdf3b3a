"""How a branch prunes: rounds, what ranks the channels, and what the cuts follow."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.core.graph import Node
from edgekd.core.report import Budget
from edgekd.errors import UserError
from edgekd.pipeline.compose import Composition
from edgekd.pipeline.pruning import kernel_block
from edgekd.pipeline.steps import parents_of
from edgekd.targets.load import load_target
from edgekd.testing.toy_data import toy_dataset
from tests.pipeline.test_compose import composed, labelled, names


def node(found: Composition, name: str) -> Node:
    return next(node for node in found.graph.nodes if node.name == name)


def test_rounds_are_repeated_nodes_that_keep_equal_ratios(tmp_path: Path) -> None:
    found = composed(
        tmp_path, dataset=labelled(), students=["prune"], teacher_keep=0.5, prune_rounds=3, recover_epochs=9
    )
    chain = [
        "teacher-prune-1",
        "teacher-recover-1",
        "teacher-prune-2",
        "teacher-recover-2",
        "teacher-prune",
        "teacher-recover",
    ]
    sources = ["@teacher", *chain[:-1]]
    for name, source in zip(chain, sources, strict=True):
        ports = node(found, name).inputs
        assert (ports.get("model") or ports.get("student")) == (source,)
    keeps = [node(found, name).config["macs_keep"] for name in chain[::2]]
    assert keeps == pytest.approx([0.5 ** (1 / 3)] * 3)
    assert [node(found, name).config["epochs"] for name in chain[1::2]] == [3, 3, 9]


def test_every_round_is_a_candidate_and_is_compared_with_the_one_before_it(tmp_path: Path) -> None:
    found = composed(tmp_path, dataset=labelled(), students=["prune"], prune_rounds=3)
    parents = parents_of(found.graph)
    assert {name: parent for name, parent in parents.items() if name.endswith("-fp32")} == {
        "teacher-fp32": "",
        "teacher-pruned-1-fp32": "teacher-fp32",
        "teacher-pruned-2-fp32": "teacher-pruned-1-fp32",
        "teacher-pruned-fp32": "teacher-pruned-2-fp32",
    }
    assert parents["teacher-pruned-1-int8-ort"] == "teacher-pruned-1-fp32"
    evaluated = {node.name for node in found.graph.nodes if node.stage == "evaluate"}
    assert {"accuracy-teacher-pruned-1-fp32", "accuracy-teacher-pruned-2-int8-ort"} <= evaluated


def test_what_follows_the_pruning_follows_its_last_round(tmp_path: Path) -> None:
    found = composed(tmp_path, dataset=labelled(), students=["prune"], prune_rounds=2, weight_bits=4)
    assert node(found, "teacher-qd4").inputs["student"] == ("teacher-recover",)


def test_a_budget_is_reached_by_rounds_that_know_how_many_are_left(tmp_path: Path) -> None:
    found = composed(
        tmp_path, dataset=labelled(), students=["prune"], prune_rounds=2, budget=Budget(max_latency_ms=2.0)
    )
    configs = [node(found, name).config for name in ("teacher-prune-1", "teacher-prune")]
    assert [config["rounds_left"] for config in configs] == [2, 1]
    assert all(config["budget_ms"] == 2.0 for config in configs)
    assert [config["macs_floor"] for config in configs] == pytest.approx([0.2**0.5] * 2)


def test_one_round_is_what_it_was_before_there_were_rounds(tmp_path: Path) -> None:
    found = composed(tmp_path, dataset=labelled(), students=["prune"], teacher_keep=0.6, recover_epochs=4)
    assert node(found, "teacher-prune").config["macs_keep"] == 0.6
    assert "strict" not in node(found, "teacher-prune").config, "a share that is asked for does not give way"
    assert node(found, "teacher-recover").config["epochs"] == 4
    assert "teacher-prune-1" not in names(found)


def test_an_importance_that_compares_with_the_teacher_gets_it(tmp_path: Path) -> None:
    found = composed(tmp_path, dataset=labelled(), importance="kd")
    for name in ("teacher-prune", "student-prune"):
        assert node(found, name).config["importance"] == "kd"
        assert node(found, name).inputs["teacher"] == ("@teacher",)
    plain = composed(tmp_path, dataset=labelled(), importance="taylor")
    assert "teacher" not in node(plain, "student-prune").inputs


def test_an_importance_that_needs_labels_is_refused_for_data_without(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="importance 'fisher' needs labels, and the data has none") as caught:
        composed(tmp_path, dataset=toy_dataset(n=400, size=32, labelled=False), importance="fisher")
    assert "--importance kd" in str(caught.value.hint)


def test_an_unknown_importance_is_refused_with_the_near_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Unknown importance 'tailor'"):
        composed(tmp_path, dataset=labelled(), importance="tailor")


def test_following_the_latency_connects_a_model_of_it_even_without_a_budget(tmp_path: Path) -> None:
    found = composed(tmp_path, dataset=labelled(), prune_follow="latency", target="jetson")
    config = node(found, "student-prune").config
    assert config["follow"] == "latency"
    assert isinstance(config["latency_model"], dict)
    assert "budget_ms" not in config
    assert config["kernel_block"] == load_target("jetson").channel_multiple


def test_measured_latencies_are_timed_once_for_all_rounds_of_a_network(tmp_path: Path) -> None:
    found = composed(
        tmp_path,
        dataset=labelled(),
        prune_follow="measured",
        prune_rounds=2,
        threads=[2],
        budget=Budget(max_latency_ms=2),
    )
    table = node(found, "student-latency-table")
    assert table.inputs == {"model": ("student-distill",), "latency_model": ("latency-model",)}
    assert table.config["threads"] == 2
    host = load_target("host")
    assert table.config["channel_multiple"] == host.channel_multiple
    assert node(found, "teacher-latency-table").inputs["model"] == ("@teacher",)
    for name in ("teacher-prune-1", "teacher-prune", "student-prune-1", "student-prune"):
        cut = node(found, name)
        assert cut.config["follow"] == "measured"
        assert cut.config["precision"] == table.config["precision"]
        assert cut.inputs["latency_table"] == (f"{name.partition('-')[0]}-latency-table",)
        assert "latency_model" not in {**cut.inputs, **cut.config}
        assert cut.config["kernel_block"] == kernel_block(host)
    assert node(found, "teacher-prune").config["budget_ms"] == 2


def test_latencies_of_a_device_that_is_not_at_hand_are_not_to_be_measured(tmp_path: Path) -> None:
    asked = {"students": ["prune"], "prune_follow": "measured", "target": "jetson-orin-nano"}
    with pytest.raises(UserError, match="jetson-orin-nano is neither this machine nor reached over ssh") as caught:
        composed(tmp_path, dataset=labelled(), **asked)  # type: ignore[arg-type]
    assert "--prune-follow latency" in str(caught.value.hint)
    found = composed(tmp_path, dataset=labelled(), on_board=True, **asked)  # type: ignore[arg-type]
    table = node(found, "teacher-latency-table")
    assert (table.config["precision"], table.config["opset"]) == ("fp16", 17)
    assert "latency_model" not in table.inputs


def test_cpus_with_wide_registers_compute_sixteen_channels_at_a_time() -> None:
    card = load_target("x86-cpu")
    assert kernel_block(card.model_copy(update={"features": ("avx512f",), "channel_multiple": 8})) == 16
    assert kernel_block(card.model_copy(update={"features": (), "channel_multiple": 8})) == 8


def test_a_share_that_nobody_asked_for_gives_way_where_a_network_cannot_be_cut_so_far(tmp_path: Path) -> None:
    found = composed(tmp_path, dataset=labelled())
    assert [node(found, name).config["strict"] for name in ("teacher-prune", "student-prune")] == [False, False]
    asked = composed(tmp_path, dataset=labelled(), prune_keep=0.5)
    assert "strict" not in node(asked, "student-prune").config
