from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgekd.core.bundle import BundleKind
from edgekd.core.events import RecordingReporter
from edgekd.core.graph import Graph, Node, validate_graph
from edgekd.errors import BuildFailed
from edgekd.pipeline.compose import FINAL, PROFILE, VERDICT
from edgekd.pipeline.execute import Run, Workspace
from edgekd.pipeline.leave_out import SPARED, spared, still_to_rebuild, without
from edgekd.pipeline.recipes import Recipe
from edgekd.pipeline.request import ModelSource, Request
from edgekd.pipeline.stages import STAGES
from edgekd.prune.config import PruneConfig
from tests.pipeline.test_compose import composed, labelled

GRAPH = Graph(
    inputs={"teacher": BundleKind.TORCH},
    nodes=(
        Node(name="graph", stage="export", inputs={"model": ("@teacher",)}),
        Node(name="pte", stage="convert", config={"to": "executorch"}, inputs={"model": ("@teacher",)}),
        Node(name="accuracy-graph", stage="evaluate", config={"candidate": "graph"}, inputs={"model": ("graph",)}),
        Node(name="accuracy-pte", stage="evaluate", config={"candidate": "pte"}, inputs={"model": ("pte",)}),
        Node(name="profile", stage="profile", inputs={"candidates": ("graph", "pte")}),
        Node(
            name="chosen",
            stage="select",
            config={"reference": "graph"},
            inputs={
                "candidates": ("graph", "pte"),
                "profile": ("profile",),
                "evaluations": ("accuracy-graph", "accuracy-pte"),
            },
        ),
    ),
)


def failure(node: str) -> BuildFailed:
    err = BuildFailed("no such operator")
    err.node = node
    return err


@pytest.mark.parametrize("stage", sorted(SPARED))
def test_a_run_can_do_without_a_twin(stage: str) -> None:
    twin = Node(name="twin", stage=stage, inputs={"model": ("@teacher",)})
    assert spared(GRAPH.model_copy(update={"nodes": (*GRAPH.nodes, twin)}), failure("twin")) == "twin"


def test_a_run_cannot_do_without_the_exported_teacher() -> None:
    assert spared(GRAPH, failure("pte")) == "pte"
    assert spared(GRAPH, failure("graph")) is None
    assert spared(GRAPH, BuildFailed("somewhere else")) is None


def test_the_engine_goes_with_what_follows_it_alone_and_the_rest_still_fits() -> None:
    left = without(GRAPH, "pte")
    assert [node.name for node in left.nodes] == ["graph", "accuracy-graph", "profile", "chosen"]
    chosen = left.nodes[-1]
    assert chosen.inputs["candidates"] == ("graph",)
    assert chosen.inputs["evaluations"] == ("accuracy-graph",)
    validate_graph(left, STAGES)


def test_a_port_of_many_that_loses_its_last_source_is_unplugged() -> None:
    only = without(without(GRAPH, "accuracy-graph"), "pte")
    assert "evaluations" not in only.nodes[-1].inputs


@pytest.mark.parametrize(
    ("asked", "left"),
    [
        ({"graph"}, set()),
        ({"graph", "profile"}, {"profile"}),
        ({"all"}, {"accuracy-graph", "profile", "chosen"}),
        ({"accuracy-pte", "chosen"}, {"chosen"}),
        (set(), set()),
    ],
)
def test_what_was_rebuilt_before_the_failure_is_not_rebuilt_again(asked: set[str], left: set[str]) -> None:
    assert still_to_rebuild(GRAPH, asked, "pte") == left


class Failing:
    """A runner that fails at a node as long as the graph has it."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.seen: list[tuple[str, ...]] = []

    def run(self, graph: Graph, inputs: object, settings: object) -> str:
        self.seen.append(tuple(node.name for node in graph.nodes))
        if self.node in self.seen[-1]:
            raise failure(self.node)
        return "the report"


def started(folder: Path, runner: Failing, monkeypatch: pytest.MonkeyPatch) -> Run:
    run = Run.__new__(Run)
    run.workspace = Workspace(out=folder / "out", store=folder / "store", reporter=RecordingReporter())
    run.recipe = Recipe(request=Request(model=ModelSource(path="m.pt"), target="host"), graph=GRAPH)
    run.situation = SimpleNamespace(teacher=None)  # type: ignore[assignment]
    monkeypatch.setattr(Run, "_runner", lambda self: runner)
    monkeypatch.setattr("edgekd.pipeline.execute.resources_of", lambda situation: {})
    return run


def test_a_run_goes_on_without_the_engine_and_says_so_in_its_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = Failing("pte")
    run = started(tmp_path, runner, monkeypatch)
    assert run._finished() == "the report"
    assert [len(seen) for seen in runner.seen] == [6, 4]
    assert run.recipe.decisions == ("pte is left out: no such operator",)
    assert "pte is left out" in (tmp_path / "out" / "resolved.yaml").read_text()


def test_another_failure_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = started(tmp_path, Failing("graph"), monkeypatch)
    with pytest.raises(BuildFailed, match="no such operator"):
        run._finished()


def test_one_rank_of_several_does_not_change_the_graph_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    run = started(tmp_path, Failing("pte"), monkeypatch)
    with pytest.raises(BuildFailed, match="no such operator"):
        run._finished()


@pytest.mark.parametrize("options", [{}, {"weight_bits": 4, "prune_rounds": 2}, {"quantize": "qat", "mixed": 2}])
def test_whatever_is_left_out_the_rest_is_a_graph_that_can_be_run(tmp_path: Path, options: dict[str, Any]) -> None:
    graph = composed(tmp_path, dataset=labelled(), **options).graph
    (select,) = (node for node in graph.nodes if node.stage == "select")
    spared_nodes = [node.name for node in graph.nodes if node.stage in SPARED]
    assert len(spared_nodes) > 8
    for name in spared_nodes:
        assert spared(graph, failure(name)) == name
        left = without(graph, name)
        names = {node.name for node in left.nodes}
        validate_graph(left, STAGES)
        assert {PROFILE, FINAL, VERDICT, "test-teacher", "test-chosen"} <= names, name
        chosen = next(node for node in left.nodes if node.name == "chosen")
        assert select.config["reference"] in chosen.inputs["candidates"]
        assert still_to_rebuild(graph, {"all"}, name) <= names


def test_weights_come_to_lie_on_levels_without_the_cut_that_failed(tmp_path: Path) -> None:
    graph = composed(tmp_path, dataset=labelled(), weight_bits=4, prune_rounds=2).graph
    for failed, takes in (("student-prune", "student-recover-1"), ("student-prune-1", "student-distill")):
        left = {node.name: node for node in without(graph, failed).nodes}
        assert left["student-qd4"].inputs["student"] == (takes,)
        assert "student-w4-codebook" in left
        assert "student-pruned-fp32" not in left


def test_networks_are_cut_evenly_without_the_table_that_failed(tmp_path: Path) -> None:
    graph = composed(tmp_path, dataset=labelled(), prune_follow="measured").graph
    left = {node.name: node for node in without(graph, "student-latency-table").nodes}
    assert left["student-prune"].config["follow"] == "macs"
    assert "latency_table" not in left["student-prune"].inputs
    PruneConfig.parse(dict(left["student-prune"].config), "test")
    assert left["teacher-prune"].config["follow"] == "measured"
    assert "student-pruned-fp32" in left


def test_the_engine_that_all_are_compared_with_is_not_spared() -> None:
    built = Node(name="graph", stage="build", inputs={"model": ("@teacher",)})
    nodes = tuple(built if node.name == "graph" else node for node in GRAPH.nodes)
    assert spared(GRAPH.model_copy(update={"nodes": nodes}), failure("graph")) is None
