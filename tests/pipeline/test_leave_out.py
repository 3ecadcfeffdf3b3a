from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from edgekd.core.bundle import BundleKind
from edgekd.core.events import RecordingReporter
from edgekd.core.graph import Graph, Node, validate_graph
from edgekd.errors import BuildFailed
from edgekd.pipeline.execute import Run, Workspace
from edgekd.pipeline.leave_out import SPARED, spared, still_to_rebuild, without
from edgekd.pipeline.recipes import Recipe
from edgekd.pipeline.request import ModelSource, Request
from edgekd.pipeline.stages import STAGES

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
        ({"all"}, {"accuracy-graph", "accuracy-pte", "profile", "chosen"}),
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
