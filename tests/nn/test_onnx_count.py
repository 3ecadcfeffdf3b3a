"""Graphs counted from their shapes, against the modules that they were exported from."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from torch import nn

from edgekd.core.cost import OpCost
from edgekd.errors import UserError
from edgekd.nn.count import layer_costs
from edgekd.nn.onnx import onnx_from_module
from edgekd.nn.onnx_count import onnx_costs, onnx_costs_from_file
from edgekd.testing.toys import toy_cnn
from tests.nn.zoo import PaddedShortcut


class Gated(nn.Module):
    """SiLU is exported as a sigmoid and a product."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 8, 3, padding=1, groups=1), nn.SiLU()
        self.depth, self.head = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.depth(self.act(self.conv(x))).mean((2, 3)))


def unfused(costs: tuple[OpCost, ...]) -> list[tuple[str, int, int]]:
    return [(cost.kind, cost.macs, cost.activations) for cost in costs if not cost.fused]


@pytest.mark.parametrize("module", [toy_cnn(), PaddedShortcut(), Gated()], ids=lambda module: type(module).__name__)
def test_a_module_and_its_export_cost_the_same(module: nn.Module, tmp_path: Path) -> None:
    onnx_from_module(module, (3, 8, 8), tmp_path / "model.onnx")
    found = onnx_costs_from_file(tmp_path / "model.onnx")
    expected = layer_costs(module, (3, 8, 8))
    assert unfused(found) == unfused(expected)
    stored = [sum(c.params for c in costs if c.kind in ("conv", "depthwise", "linear")) for costs in (found, expected)]
    assert stored[0] == pytest.approx(stored[1], rel=0.05), "folding BatchNorm may add a bias"


def graph(nodes: list[onnx.NodeProto], shape: list[int | str], *weights: tuple[str, list[int]]) -> onnx.ModelProto:
    tensors = [helper.make_tensor(n, TensorProto.FLOAT, d, [0.0] * onnx_size(d)) for n, d in weights]
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, shape)], [value("y", TensorProto.FLOAT, None)], tensors
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def onnx_size(dims: list[int]) -> int:
    size = 1
    for dim in dims:
        size *= dim
    return size


def test_quantize_nodes_are_notation_and_cost_nothing() -> None:
    scale = ("s", [])
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s"], ["d"]),
        helper.make_node("Conv", ["d", "w"], ["y"]),
    ]
    (cost,) = onnx_costs(graph(nodes, ["N", 3, 8, 8], scale, ("w", [4, 3, 3, 3])))
    assert (cost.kind, cost.macs, cost.params) == ("conv", 4 * 36 * 27, 108)


def test_a_transposed_convolution_spreads_each_value_that_it_reads() -> None:
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])
    (cost,) = onnx_costs(graph([node], [1, 4, 8, 8], ("w", [4, 6, 2, 2])))
    assert cost.macs == 64 * 4 * 6 * 4


def test_an_open_axis_beside_the_batch_needs_a_size() -> None:
    model = graph([helper.make_node("Relu", ["x"], ["y"])], ["N", 3, "H", 8])
    with pytest.raises(UserError, match="'x' leaves axis 2 open"):
        onnx_costs(model)
    (cost,) = onnx_costs(model, {"x": (1, 3, 4, 8)})
    assert cost.activations == 2 * 96


def test_an_operator_without_a_shape_rule_is_named() -> None:
    nodes = [
        helper.make_node("Mystery", ["x"], ["m"], name="mystery_1", domain="vendor"),
        helper.make_node("Relu", ["m"], ["y"]),
    ]
    model = graph(nodes, [1, 3, 8, 8])
    model.opset_import.append(helper.make_opsetid("vendor", 1))
    with pytest.raises(UserError, match="at Mystery 'mystery_1'"):
        onnx_costs(model)


def test_a_file_that_is_no_graph_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(UserError, match=r"broken\.onnx is not a readable ONNX file"):
        onnx_costs_from_file(path)
