"""What `--weight-bits` asks of a training, by target."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.targets.load import load_target
from tests.pipeline.test_compose import composed, labelled


@pytest.mark.parametrize(("features", "bits", "reduced"), [(("avx2",), 8, True), (("avx2",), 4, False), ((), 8, False)])
def test_weights_of_8_bits_are_trained_on_the_range_that_int8_will_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, features: tuple[str, ...], bits: int, reduced: bool
) -> None:
    card = load_target("host").model_copy(update={"features": features})
    monkeypatch.setattr("tests.pipeline.test_compose.load_target", lambda _name: card)
    found = composed(tmp_path, dataset=labelled(), weight_bits=bits)
    nodes = {node.name: node for node in found.graph.nodes}
    assert nodes[f"student-qd{bits}"].config.get("reduce_range", False) == reduced
    calibrated = [node for node in nodes.values() if node.stage == "quantize" and node.name.startswith("student-w")]
    assert {node.config["reduce_range"] for node in calibrated} == {features == ("avx2",)}
