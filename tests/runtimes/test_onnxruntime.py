from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgekd.errors import UserError
from edgekd.runtimes.onnxruntime import emulated, values_in_graph
from edgekd.runtimes.samples import random_images
from edgekd.testing.toy_graphs import toy_graph

IMAGES = {"images": random_images((3, 8, 8), samples=2, seed=0)}


def test_every_inner_value_is_exposed_in_the_order_of_computation() -> None:
    graph = toy_graph()
    values = values_in_graph(graph, IMAGES)
    assert list(values) == [node.output[0] for node in graph.graph.node]
    np.testing.assert_array_equal(values["stem.relu"], np.maximum(values["stem"], 0))
    assert [output.name for output in graph.graph.output] == ["logits"]


def test_a_graph_that_does_not_load_is_a_user_error() -> None:
    graph = toy_graph()
    graph.graph.node[0].input[1] = "nowhere"
    with pytest.raises(UserError, match="cannot load the graph with its inner values exposed"):
        values_in_graph(graph, IMAGES)


def test_emulation_of_an_unquantized_graph_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(toy_graph(), path)
    with emulated(path) as session:
        logits = session.infer(IMAGES)["logits"]
    np.testing.assert_allclose(logits, values_in_graph(toy_graph(), IMAGES)["logits"], rtol=1e-4, atol=1e-5)
