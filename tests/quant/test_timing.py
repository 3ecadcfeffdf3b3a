"""INT8 graphs for timing have the nodes of those that are calibrated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgekd.core.events import SilentReporter
from edgekd.quant.form import quantized_nodes
from edgekd.quant.layers import GraphView
from edgekd.quant.ptq import CalibratedScheme, PtqConfig, int8_builder
from edgekd.quant.timing import nncf_form, ort_form, trt_form
from edgekd.runtimes.onnx_file import write_graph
from edgekd.runtimes.samples import Samples, random_images
from edgekd.testing.toy_graphs import toy_graph


@pytest.mark.parametrize(
    ("form", "scheme"),
    [
        (ort_form, "ort-u8s8"),
        (trt_form, "tensorrt-s8"),
        pytest.param(nncf_form, "openvino", marks=pytest.mark.slow),
    ],
)
def test_the_graph_has_the_nodes_and_zero_points_of_the_calibrated_one(
    form: Callable[[Path, Path], onnx.ModelProto], scheme: CalibratedScheme, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    write_graph(toy_graph(), path, made_by="the test")
    made = form(path, tmp_path)
    options = PtqConfig(calib_method="minmax", bias_correction=False)
    samples = Samples(random_images((3, 8, 8), samples=8, seed=0) + np.float32(0.5), None, "synthetic")
    builder = int8_builder(path, samples, scheme, options, scratch=tmp_path, seed=0, reporter=SilentReporter())
    expected = builder.build()
    assert [node.op_type for node in made.graph.node] == [node.op_type for node in expected.graph.node]
    assert quantized_nodes(made) == quantized_nodes(expected)
    assert set(quantized_nodes(made)) >= {"stem", "block", "head"}
    assert _corrects(made) == _corrects(expected)


def _corrects(model: onnx.ModelProto) -> list[bool]:
    """By quantized activation, whether kernels must correct for its zero point."""
    view = GraphView(model)
    found = []
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            found.append(bool(np.any(view.array(node.input[2]) != 0)) if len(node.input) > 2 else False)
    return found
