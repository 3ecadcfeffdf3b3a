"""Weights of few bits: how they come to lie on levels, and the engine that stores them as codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekd.core.graph import Node
from edgekd.core.report import Choice
from edgekd.errors import UserError
from edgekd.export.package import verified_package
from edgekd.pipeline.compose import Composition
from edgekd.pipeline.few_bits import READ_IN
from edgekd.pipeline.leave_out import SPARED
from edgekd.pipeline.steps import _title, parents_of
from edgekd.runtimes.session import RUNTIMES
from tests.pipeline.test_compose import composed, labelled
from tests.pipeline.world import World, edgekd


def node(found: Composition, name: str) -> Node:
    return next(node for node in found.graph.nodes if node.name == name)


def test_a_model_of_few_bits_has_an_engine_that_stores_them_as_codes(tmp_path: Path) -> None:
    found = composed(tmp_path, dataset=labelled(), weight_bits=4)
    packed = node(found, "student-w4-codebook")
    assert packed.stage == "codebook"
    assert packed.inputs == {"model": ("student-w4-fp32",), "weights": ("student-qd4",)}
    assert "student-w4-codebook" in node(found, "chosen").inputs["candidates"]
    assert node(found, "accuracy-student-w4-codebook").config["runtimes"] == ["onnxruntime", "openvino"]
    assert node(found, "accuracy-student-w4-codebook").config["candidate"] == "student-w4-codebook"
    assert {n.name for n in found.graph.nodes if n.stage == "codebook"} == {
        "student-w4-codebook", "teacher-w4-codebook"
    }  # fmt: skip
    assert parents_of(found.graph)["student-w4-codebook"] == "student-w4-fp32"
    assert not any(n.stage == "codebook" for n in composed(tmp_path, dataset=labelled()).graph.nodes)


def test_a_codebook_that_cannot_be_made_ends_no_run() -> None:
    assert "codebook" in SPARED


def test_runtimes_that_read_codes_are_ones_that_there_are() -> None:
    assert {RUNTIMES.get(name).name for name in READ_IN} == set(READ_IN)


def test_tensorrt_is_given_no_codes_and_the_draft_says_so(tmp_path: Path) -> None:
    found = composed(tmp_path, dataset=labelled(), target="jetson", weight_bits=4)
    assert "student-qd4" in {n.name for n in found.graph.nodes}
    assert not any(n.stage == "codebook" for n in found.graph.nodes)
    said = [line for line in found.decisions if line.startswith("Weights of few bits are stored in full: what")]
    assert len(said) == 1


@pytest.mark.parametrize(("levels", "granularity"), [(None, None), ("channel", None), ("bucket", "bucket")])
def test_even_levels_are_quantized_distillation(tmp_path: Path, levels: str | None, granularity: str | None) -> None:
    found = composed(tmp_path, dataset=labelled(), weight_bits=2, weight_levels=levels)
    trained = node(found, "student-qd2")
    assert trained.stage == "quantized-distill"
    assert (trained.config["bits"], trained.config.get("granularity")) == (2, granularity)


def test_learned_levels_are_differentiable_quantization_of_a_trained_model(tmp_path: Path) -> None:
    found = composed(tmp_path, dataset=labelled(), weight_bits=4, weight_levels="learned", epochs=40)
    trained = node(found, "student-dq4")
    assert trained.stage == "differentiable-quantize"
    assert trained.inputs == {
        "student": ("student-recover",), "teacher": ("@teacher",), "answers": ("teacher-answers",)
    }  # fmt: skip
    assert (trained.config["bits"], trained.config["epochs"]) == (4, 10)
    assert "lr" not in trained.config  # Levels have a unit of their own: the stage knows its rate.
    assert node(found, "student-w4-codebook").inputs["weights"] == ("student-dq4",)
    assert not any(n.stage == "quantized-distill" for n in found.graph.nodes)


@pytest.mark.parametrize(("options", "epochs"), [({"weight_bits": 2}, 20), ({"recover_epochs": 33}, 33), ({}, 10)])
def test_levels_are_trained_as_long_as_the_authors_do(tmp_path: Path, options: dict[str, int], epochs: int) -> None:
    asked: dict[str, object] = {"weight_bits": 4, "weight_levels": "learned", "epochs": 80, **options}
    found = composed(tmp_path, dataset=labelled(), **asked)
    assert node(found, f"student-dq{asked['weight_bits']}").config["epochs"] == epochs


def test_levels_without_bits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--weight-levels learned says on which levels") as e:
        composed(tmp_path, dataset=labelled(), weight_levels="learned")
    assert e.value.hint == "add --weight-bits 4, for example"


def test_models_are_called_by_their_bits_and_levels() -> None:
    assert _title("student-2-qd4") == "Student 2, 4-bit weights"
    assert _title("teacher-dq2") == "Teacher, 2-bit learned levels"


@pytest.mark.slow
@pytest.mark.parametrize("levels", ["channel", "learned"])
def test_a_size_that_only_few_bits_keep_ships_them(world: World, levels: str) -> None:
    """The engine with codes is as accurate as the model behind it, much smaller, and what a tight limit chooses."""
    asked = ["--data", str(world.data), "--students", "prune", "--precision", "fp32", "--weight-bits", "4"]
    limits = ["--weight-levels", levels, "--max-size-mib", "0.12", "--max-drop", "1.0"]
    done = edgekd(world.command(*asked, *limits), world.folder)
    assert done.returncode == 0, done.stderr
    out = world.folder / "out"
    metrics = json.loads((out / "metrics.json").read_text())
    sizes = {e["candidate"]: e["size_mib"] for e in metrics["profile"]["entries"]}
    assert sizes["teacher-w4-codebook"] < sizes["teacher-w4-fp32"] / 3
    accuracy = {(e["candidate"], e["runtime"]): e["value"] for e in metrics["evaluations"] if e["split"] == "select"}
    for runtime in ("onnxruntime", "openvino"):
        full, packed = accuracy["teacher-w4-fp32", runtime], accuracy["teacher-w4-codebook", runtime]
        assert abs(packed - full) <= 0.005
    assert Choice.parse(metrics["choice"], "test").candidate == "teacher-w4-codebook"
    called = "4-bit learned levels" if levels == "learned" else "4-bit weights"
    assert f"Teacher, {called}, FP32 (packed)" in (out / "report.html").read_text()
    package = verified_package(out / "bundle")
    assert package.deployment is not None
    chosen = next(engine for engine in package.deployment.engines if engine.chosen)
    assert (chosen.precision, chosen.scheme) == ("fp32", "weight-only")
    assert chosen.size_mib == pytest.approx(sizes["teacher-w4-codebook"])
    assert {engine.name for engine in package.deployment.engines} >= {"teacher-w4-codebook", "teacher-w4-fp32"}
