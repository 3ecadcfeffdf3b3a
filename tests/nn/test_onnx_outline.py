"""Reading a graph without its weights, counted in bytes that are read."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto, helper, numpy_helper

from edgekd.nn.onnx_count import onnx_costs, onnx_costs_from_file
from edgekd.nn.onnx_outline import LARGE, outline_bytes, outline_from_file

WIDTH = 512
"""A product of 1 MiB of weights."""


class Counting(io.BytesIO):
    """Counts the bytes that are read from it."""

    taken = 0

    def read(self, size: int | None = -1) -> bytes:
        found = super().read(size)
        self.taken += len(found)
        return found


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    heavy = np.zeros((WIDTH, WIDTH), np.float32)
    tensors = [numpy_helper.from_array(heavy, "raw"), numpy_helper.from_array(np.array([-1, WIDTH]), "shape")]
    tensors.append(helper.make_tensor("listed", TensorProto.FLOAT, [WIDTH, WIDTH], heavy.ravel()))
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "raw"], ["middle"]),
        helper.make_node("MatMul", ["middle", "listed"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    ends = [value("x", TensorProto.FLOAT, [1, 2, WIDTH])], [value("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "g", *ends, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_weights_are_passed_over_and_not_read(model: onnx.ModelProto) -> None:
    whole = model.SerializeToString()
    stream = Counting(whole)
    kept = outline_bytes(stream, len(whole))
    assert len(whole) > 2 * WIDTH * WIDTH * 4
    assert stream.taken < LARGE
    assert len(kept) < LARGE


def test_all_but_the_large_data_stays(model: onnx.ModelProto, tmp_path: Path) -> None:
    onnx.save(model, tmp_path / "model.onnx")
    found = outline_from_file(tmp_path / "model.onnx")
    expected = onnx.ModelProto()
    expected.CopyFrom(model)
    for tensor in expected.graph.initializer:
        if tensor.name != "shape":
            tensor.ClearField("raw_data")
            tensor.ClearField("float_data")
    assert found == expected


def test_a_file_costs_what_its_model_costs(
    model: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx.save(model, tmp_path / "model.onnx")
    monkeypatch.setattr(onnx, "load", lambda *_, **__: pytest.fail("the whole file was read"))
    found = onnx_costs_from_file(tmp_path / "model.onnx")
    assert found == onnx_costs(model)
    assert sum(cost.macs for cost in found) == 2 * 2 * WIDTH * WIDTH


@pytest.mark.parametrize("cut", [1, 100, 5000])
def test_a_file_cut_short_is_refused(model: onnx.ModelProto, cut: int) -> None:
    whole = model.SerializeToString()[:-cut]
    with pytest.raises(DecodeError):
        outline_bytes(io.BytesIO(whole), len(whole))


@pytest.mark.parametrize("garbage", [b"\x0b", b"\xff" * 12, b"\x3a\x05ab"])
def test_bytes_that_are_no_message_are_refused(garbage: bytes) -> None:
    with pytest.raises(DecodeError):
        outline_bytes(io.BytesIO(garbage), len(garbage))
