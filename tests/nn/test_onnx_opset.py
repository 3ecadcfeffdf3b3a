"""A graph of opset 18 in opset 17: the same numbers by the older rules, or a refusal that names the operator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgekd.errors import BuildFailed
from edgekd.nn.onnx import onnx_from_module
from edgekd.nn.onnx_opset import in_opset_17
from edgekd.runtimes.onnxruntime import exact_outputs

SHAPE = [2, 6, 4, 4]
IMAGES = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)


def graph_of(kind: str, constants: dict[str, Any], outputs: int = 1, **attributes: Any) -> onnx.ModelProto:
    names = [f"y{place}" for place in range(outputs)]
    node = helper.make_node(kind, ["x", *(name if value is not None else "" for name, value in constants.items())],
                            names, "node", **attributes)  # fmt: skip
    graph = helper.make_graph(
        [node],
        "toy",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items() if value is not None],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return onnx.shape_inference.infer_shapes(made)


@pytest.mark.parametrize(
    ("kind", "constants", "attributes"),
    [
        ("ReduceMean", {"axes": np.array([2, 3], np.int64)}, {"keepdims": 0}),
        ("ReduceMax", {"axes": np.array([-1], np.int64)}, {"keepdims": 1}),
        ("ReduceL2", {}, {"keepdims": 0}),
        ("Split", {"sizes": np.array([2, 4], np.int64)}, {"axis": 1, "outputs": 2}),
        ("Split", {}, {"axis": 1, "num_outputs": 3, "outputs": 3}),
        ("Pad", {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)}, {}),
        ("Resize", {"roi": None, "scales": np.array([1, 1, 2, 2], np.float32)}, {"mode": "nearest", "antialias": 0}),
        ("Relu", {}, {}),
    ],
)
def test_it_computes_the_same_by_the_older_rules(
    kind: str, constants: dict[str, Any], attributes: dict[str, Any]
) -> None:
    newer = graph_of(kind, constants, **attributes)
    older = in_opset_17(newer)
    onnx.checker.check_model(older, full_check=True)
    assert older.opset_import[0].version == 17
    for before, after in zip(exact_outputs(newer, {"x": IMAGES}), exact_outputs(older, {"x": IMAGES}), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    ("kind", "constants", "attributes"),
    [
        ("Mish", {}, {}),
        ("Split", {}, {"axis": 1, "num_outputs": 4, "outputs": 4}),
        ("Resize", {"roi": None, "scales": np.array([1, 1, 2, 2], np.float32)}, {"mode": "linear", "antialias": 1}),
        ("ReduceMean", {"axes": np.array([2], np.int64)}, {"noop_with_empty_axes": 1}),
    ],
)
def test_what_has_no_older_form_is_refused_by_name(
    kind: str, constants: dict[str, Any], attributes: dict[str, Any]
) -> None:
    with pytest.raises(BuildFailed, match=f"The operator {kind} 'node' as it stands has no form in ONNX opset 17") as e:
        in_opset_17(graph_of(kind, constants, **attributes))
    assert e.value.hint is not None
    assert "--opset 18" in e.value.hint


class Mean(nn.Module):
    """Ends in a reduction, whose axes moved with opset 18."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean((2, 3))


def test_an_export_in_opset_17_is_of_opset_17(tmp_path: Path) -> None:
    module = Mean().eval()
    onnx_from_module(module, (3, 8, 8), tmp_path / "model.onnx", opset=17)
    model = onnx.load(tmp_path / "model.onnx")
    assert model.opset_import[0].version == 17
    images = torch.randn(2, 3, 8, 8)
    (found,) = exact_outputs(model, {"images": images.numpy()})
    np.testing.assert_allclose(found, module(images).detach().numpy(), atol=1e-6)
