from __future__ import annotations

from pathlib import Path

from edgekd.core.report import Budget
from tests.pipeline.test_compose import composed, labelled, names


def test_blocks_are_replaced_only_when_asked_for(tmp_path: Path) -> None:
    assert not {"block-library", "assemble"} & names(composed(tmp_path, dataset=labelled()))


def test_the_branch_goes_from_the_library_to_engines(tmp_path: Path) -> None:
    found = composed(tmp_path, dataset=labelled(), students=["blocks"], budget=Budget(max_latency_ms=2.0))
    nodes = {node.name: node for node in found.graph.nodes}
    assert {"block-library", "assemble", "assembled-distill", "assembled-fp32", "assembled-int8-ort"} <= nodes.keys()
    assert "search" not in nodes
    assert nodes["assemble"].config["budget_ms"] == 2.0
    assert nodes["assemble"].inputs["latency_model"] == ("latency-model",)
    assert nodes["assembled-distill"].inputs["student"] == ("assemble",)


def test_a_distant_target_takes_its_latency_model_from_the_card(tmp_path: Path) -> None:
    found = composed(tmp_path, dataset=labelled(), students=["blocks"], target="jetson")
    assemble = next(node for node in found.graph.nodes if node.name == "assemble")
    assert isinstance(assemble.config["latency_model"], dict)


def test_the_recovery_of_the_assembled_student_is_that_of_a_pruned_network(tmp_path: Path) -> None:
    found = composed(tmp_path, dataset=labelled(), students=["prune", "blocks"])
    configs = {node.name: node.config for node in found.graph.nodes}
    assert configs["assembled-distill"] == configs["teacher-recover"]


def test_a_teacher_without_blocks_is_left_alone_with_the_reason(tmp_path: Path) -> None:
    found = composed(tmp_path, dataset=labelled(), trainable=False, students=["blocks"])
    assert "block-library" not in names(found)
    assert any("No student is assembled of blocks" in sentence for sentence in found.decisions)
