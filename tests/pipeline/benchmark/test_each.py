"""A graph whose failing nodes stop only what is made from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.graph import Graph, Node
from edgekd.core.plan import Action, NodeReport
from edgekd.core.registry import Registry
from edgekd.core.runner import Runner, RunSettings
from edgekd.core.stage import Context, Inputs, Stage, StageConfig, StageResult, port
from edgekd.core.store import LocalStore, MemoryStore
from edgekd.errors import BuildFailed, EdgekdError, UserError
from edgekd.pipeline.benchmark.each import run_each


class _Config(StageConfig):
    mood: str = "good"


class Moody(Stage[_Config]):
    """Hands on its input, or fails in one of two ways."""

    name = "moody"
    Config = _Config
    ports: ClassVar = {"model": port(BundleKind.ONNX)}
    produces = BundleKind.ONNX

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        if self.config.mood == "bad":
            raise BuildFailed("it is in a bad mood")
        if self.config.mood == "foreign":
            raise ZeroDivisionError("somebody else's")
        bundle = inputs.one("model")
        return StageResult(bundle=bundle.model_copy(update={"tags": {"by": self.config.mood}}))


def node(name: str, source: str, mood: str = "good") -> Node:
    return Node(name=name, stage="moody", config={"mood": mood}, inputs={"model": (source,)})


def runner(folder: Path) -> Runner:
    stages: Registry[type[Stage[Any]]] = Registry("stage", {"moody": f"{__name__}:Moody"})
    return Runner(stages, MemoryStore(folder))


def test_the_rest_of_the_graph_goes_on_past_a_failure_and_past_a_librarys_own_exception(tmp_path: Path) -> None:
    nodes = (
        node("a", "@model"), node("b", "@model", "bad"), node("c", "b"), node("d", "@model", "foreign"), node("e", "a"),
    )  # fmt: skip
    graph = Graph(inputs={"model": BundleKind.ONNX}, nodes=nodes)
    model = ModelBundle(kind=BundleKind.ONNX)
    found = run_each(runner(tmp_path), graph, {"model": model}, RunSettings())
    assert list(found) == ["a", "b", "c", "d", "e"]
    assert isinstance(found["a"], NodeReport)
    assert isinstance(found["e"], NodeReport)
    messages = {name: result.message for name, result in found.items() if isinstance(result, EdgekdError)}
    assert messages == {
        "b": "it is in a bad mood",
        "c": "It is made from b, which failed.",
        "d": "moody ended with ZeroDivisionError: somebody else's",
    }


def test_nodes_have_the_keys_of_the_whole_graph_and_what_one_made_is_reused_by_the_other(tmp_path: Path) -> None:
    graph = Graph(inputs={"model": BundleKind.ONNX}, nodes=(node("a", "@model"), node("b", "a", "calm")))
    inputs = {"model": ModelBundle(kind=BundleKind.ONNX)}
    whole = runner(tmp_path)
    first = whole.run(graph, inputs, RunSettings())
    again = run_each(whole, graph, inputs, RunSettings())
    assert [again[name].action for name in "ab"] == [Action.REUSE, Action.REUSE]  # type: ignore[union-attr]
    assert [again[name].key for name in "ab"] == [first.node(name).key for name in "ab"]  # type: ignore[union-attr]
    rebuilt = run_each(whole, graph, inputs, RunSettings(rebuild=frozenset({"b"})))
    assert [rebuilt[name].action for name in "ab"] == [Action.REUSE, Action.RUN]  # type: ignore[union-attr]


def test_a_store_that_another_run_uses_ends_the_table_instead_of_failing_every_row(tmp_path: Path) -> None:
    graph = Graph(inputs={"model": BundleKind.ONNX}, nodes=(node("a", "@model"), node("b", "a")))
    inputs = {"model": ModelBundle(kind=BundleKind.ONNX)}
    mine = Runner(runner(tmp_path / "other").stages, LocalStore(tmp_path / "store"))
    with LocalStore(tmp_path / "store").lock(), pytest.raises(UserError, match="in use by process"):
        run_each(mine, graph, inputs, RunSettings())
    found = run_each(mine, graph, inputs, RunSettings())
    assert all(isinstance(result, NodeReport) for result in found.values())
