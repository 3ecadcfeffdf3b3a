from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.core.bundle import BundleKind
from edgekd.core.graph import Graph, Node
from edgekd.core.report import Budget
from edgekd.errors import UserError
from edgekd.pipeline.recipes import Recipe, read_recipe, write_recipe
from edgekd.pipeline.request import ModelSource, Request

RECIPE = Recipe(
    request=Request(
        model=ModelSource(path="m.pt", arch="timm:resnet18"),
        target="host",
        data="d.npz",
        budget=Budget(max_latency_ms=5.0),
    ),
    decisions=("because",),
    graph=Graph(
        inputs={"teacher": BundleKind.TORCH},
        nodes=(Node(name="student-distill", stage="distill", config={"epochs": 3}, inputs={"student": ("@teacher",)}),),
    ),
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_recipe(RECIPE, tmp_path / "deep" / "resolved.yaml")
    return tmp_path / "deep" / "resolved.yaml"


def test_a_written_recipe_reads_back_equal(file: Path) -> None:
    assert read_recipe(file) == (RECIPE, False)


def test_an_override_reaches_a_node_by_its_name(file: Path) -> None:
    changed, composes = read_recipe(file, ["graph.nodes.student-distill.config.epochs=5"])
    assert changed.graph.nodes[0].config == {"epochs": 5}
    assert not composes


def test_an_override_of_the_request_composes_the_graph_anew(file: Path) -> None:
    changed, composes = read_recipe(file, ["request.seed=3", "options.epochs=7"])
    assert (changed.request.seed, changed.options.epochs) == (3, 7)
    assert composes


def test_overrides_of_the_request_and_of_the_graph_do_not_mix(file: Path) -> None:
    with pytest.raises(UserError, match="composes the graph anew"):
        read_recipe(file, ["request.seed=3", "graph.nodes.student-distill.config.epochs=5"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("graph.nodes.student-distil.config.epochs=5", "Did you mean 'student-distill'"),
        ("graphs.nodes=1", "Did you mean 'graph'"),
        ("request.seeds=1", "Did you mean 'seed'"),
        ("request.seed", "not of the form key=value"),
        ("request.budget.max_latency_ms=-1", "max_latency_ms"),
    ],
)
def test_a_wrong_override_says_what_is_near(file: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_recipe(file, [override])


@pytest.mark.parametrize(
    ("text", "message"), [("a: [", "not valid YAML"), ("- 1", "expected a recipe"), ("{}", "missing")]
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_recipe(tmp_path / "r.yaml")


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml"):
        read_recipe(tmp_path / "nowhere.yaml")
