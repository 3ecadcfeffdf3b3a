"""What teaches the trainings of a graph, by the objectives that they have."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.errors import UserError
from edgekd.testing.toy_data import toy_dataset
from tests.pipeline.test_compose import composed, labelled


def test_an_objective_that_wants_images_without_labels_gets_nearly_all_of_the_pool_without(tmp_path: Path) -> None:
    data = labelled()
    pooled = data.with_pool(data.train, data.digest, "a pool")
    found = {
        name: composed(tmp_path, dataset=pooled, objective=name, effort="quick") for name in ("kd", "dho", "dho+dkd")
    }
    configs = {name: next(n.config for n in plan.graph.nodes if n.stage == "gather") for name, plan in found.items()}
    assert configs["dho"] == {"labels": "none", "sure_as": 0.0, "per_class": None}
    assert configs["kd"] == configs["dho+dkd"] == {}, "dkd needs every label"
    epochs = {
        name: next(n.config["epochs"] for n in plan.graph.nodes if n.name == "student-distill")
        for name, plan in found.items()
    }
    assert epochs == {"kd": 195, "dho": 98, "dho+dkd": 195}, "100,000 images are seen"


def test_weights_on_a_grid_are_trained_without_what_would_rewrite_them(tmp_path: Path) -> None:
    found = composed(tmp_path, dataset=labelled(), weight_bits=4, objective="dho+at")
    assert {n.config["objective"] for n in found.graph.nodes if n.stage == "quantized-distill"} == {"at"}
    assert sum("weights of few bits lie on a grid, so it uses at" in line for line in found.decisions) == 1
    plain = composed(tmp_path, dataset=labelled(), weight_bits=4, objective="dho")
    assert {n.config["objective"] for n in plain.graph.nodes if n.stage == "quantized-distill"} == {"kd"}


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
