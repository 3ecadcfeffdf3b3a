"""Quantization-aware training as a user asks for it: trained twins compete with calibrated ones, end to end."""

from __future__ import annotations

import json

import pytest

from edgekd.core.bundle import BundleKind
from edgekd.core.graph import Graph, Node, validate_graph
from edgekd.errors import UserError
from edgekd.pipeline.stages import STAGES
from tests.pipeline.world import World, edgekd


@pytest.mark.slow
def test_trained_twins_are_evaluated_beside_calibrated_ones_and_one_is_chosen(world: World) -> None:
    options = ["--quantize", "qat", "--students", "none", "--precision", "fp32,int8", "--max-drop", "1.0"]
    done = edgekd(world.command("--data", str(world.data), *options), world.folder)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((world.folder / "out" / "metrics.json").read_text())
    candidates = {entry["candidate"] for entry in metrics["profile"]["entries"]}
    assert {"teacher-int8-ort", "teacher-int8-ort-qat", "teacher-int8-openvino-qat"} <= candidates
    trained = metrics["stages"]["teacher-int8-ort-qat"]
    assert trained["parity_agreement"] > 0.95
    assert 0 <= trained["accuracy_select_before"] <= 1
    assert "Teacher, INT8 (ort-u8s8, trained)" in done.stderr + done.stdout
    assert "went from" in (world.folder / "out" / "report.html").read_text()


def test_weights_that_were_trained_to_their_quantizers_are_not_quantized_again() -> None:
    nodes = (
        Node(name="q", stage="quantize", config={"scheme": "ort-u8s8"}, inputs={"model": ("@teacher",)}),
        Node(name="qat", stage="qat", inputs={"model": ("q",)}),
        Node(name="again", stage="quantize", config={"scheme": "ort-u8s8"}, inputs={"model": ("qat",)}),
    )
    validate_graph(Graph(inputs={"teacher": BundleKind.ONNX}, nodes=nodes[:2]), STAGES)
    with pytest.raises(UserError, match="again"):
        validate_graph(Graph(inputs={"teacher": BundleKind.ONNX}, nodes=nodes), STAGES)
