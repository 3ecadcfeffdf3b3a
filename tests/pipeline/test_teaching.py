"""What teaches the trainings of a graph, by the objectives that they have."""

from __future__ import annotations

from pathlib import Path

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
