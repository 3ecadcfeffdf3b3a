"""What teaches in a graph: a teacher that is trained along is drafted without anything that it would have to repeat."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.errors import UserError
from edgekd.testing.toy_data import toy_dataset
from tests.pipeline.test_compose import composed, labelled


def test_a_teacher_that_is_trained_along_is_asked_for_nothing_beforehand(tmp_path: Path) -> None:
    found = composed(tmp_path, dataset=labelled(), objective="bdkd-online", quantize="qat", weight_bits=4)
    assert not {node.name for node in found.graph.nodes if node.stage == "teach"}
    trained = [node for node in found.graph.nodes if node.stage in ("distill", "quantized-distill", "qat")]
    assert len(trained) > 5
    for node in trained:
        assert (node.config["objective"], node.config["teacher_views"]) == ("bdkd-online", 0)
        assert node.inputs["teacher"] == ("@teacher",)
        assert "answers" not in node.inputs
    assert any("trained along with every student" in line for line in found.decisions)


def test_a_teacher_that_would_learn_without_labels_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'bdkd-online' needs labels"):
        composed(tmp_path, dataset=toy_dataset(n=640, size=32, labelled=False), objective="bdkd-online")
