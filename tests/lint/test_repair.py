"""Repairs: applied for the runtimes at hand, proven, written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekd.errors import BuildFailed, UserError
from edgekd.lint.grids import IntegerBias
from edgekd.lint.repair import write_repaired
from tests.lint.graphs import CHANNELS, ORT, SIZE, TENSORRT, Builder, float_conv
from tests.lint.test_grids import integer_bias
from tests.lint.test_structure import normalised_conv


def test_what_was_changed_is_listed_and_proven(tmp_path: Path) -> None:
    repair = write_repaired(normalised_conv(signs=-1.0), tmp_path / "out.onnx", ORT)
    assert repair.changes == ("norm: folded into layer.",)
    assert (repair.rules, repair.origin, repair.samples) == (("batch-norm",), "noise", 8)
    assert repair.sqnr_db > 100
    made = onnx.load(tmp_path / "out.onnx")
    assert [node.op_type for node in made.graph.node] == [
        "QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "Conv",
    ]  # fmt: skip


def test_weights_that_an_old_exporter_lists_as_inputs_can_be_folded(tmp_path: Path) -> None:
    model = normalised_conv(signs=-1.0)
    model.ir_version = 3
    for entry in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(entry.name, entry.data_type, entry.dims))
    repair = write_repaired(model, tmp_path / "out.onnx", ORT)
    assert repair.changes == ("norm: folded into layer.",)
    assert repair.sqnr_db > 100
    made = onnx.load(tmp_path / "out.onnx")
    assert len(made.graph.input) == 1
    assert made.ir_version == 8


def test_only_what_concerns_the_runtime_is_mended(tmp_path: Path) -> None:
    for where, count in ((ORT, 0), (TENSORRT, 1)):
        repair = write_repaired(integer_bias(), tmp_path / "out.onnx", where)
        assert len(repair.changes) == count


def test_a_graph_with_nothing_to_mend_is_copied(tmp_path: Path) -> None:
    repair = write_repaired(float_conv(), tmp_path / "deep" / "out.onnx", TENSORRT)
    assert repair.changes == ()
    assert [node.op_type for node in onnx.load(tmp_path / "deep" / "out.onnx").graph.node] == ["Conv", "Relu"]


def test_the_proof_uses_the_images_that_are_given(tmp_path: Path) -> None:
    images = np.ones((3, CHANNELS, SIZE, SIZE), np.float32)
    repair = write_repaired(normalised_conv(), tmp_path / "out.onnx", ORT, images=images)
    assert (repair.origin, repair.samples) == ("data", 3)


def test_a_repair_that_changes_what_the_graph_computes_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def doubles(self: IntegerBias, model: onnx.ModelProto) -> list[str]:
        for entry in model.graph.initializer:
            if entry.name == "scale":
                entry.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(entry) * 50, "scale"))
        return ["bias: doubled."]

    monkeypatch.setattr(IntegerBias, "repair_", doubles)
    path = tmp_path / "out.onnx"
    path.write_bytes(b"before")
    with pytest.raises(BuildFailed, match=r"does not compute the same: .* the first being: bias: doubled\."):
        write_repaired(integer_bias(), path, TENSORRT)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_graph_with_open_sizes_is_not_mended_without_proof(tmp_path: Path) -> None:
    b = Builder()
    value = b.conv(b.node("Identity", ["images"], "same"), "conv", quantized=False)
    model = b.model(value, inputs={"images": ["N", CHANNELS, "H", SIZE]})
    with pytest.raises(UserError, match="leaves axis 2 open, so the repairs cannot be proven"):
        write_repaired(model, tmp_path / "out.onnx", TENSORRT)


def in_branch(read: str, b: Builder, value: str) -> str:
    """An If whose branches read a value of the graph around them; returns what it gives."""
    bodies = {}
    for side in ("then", "else"):
        made = helper.make_tensor_value_info(side, TensorProto.FLOAT, ["N", CHANNELS, SIZE, SIZE])
        nodes = [helper.make_node("Neg", [read], [side], f"{side}.neg")]
        bodies[f"{side}_branch"] = helper.make_graph(nodes, side, [], [made])
    mean = b.node("ReduceMean", [value], "mean", keepdims=0)
    positive = b.node("Greater", [mean, b.constant("none", 0.0)], "positive")
    return b.node("Add", [b.node("If", [positive], "if", **bodies), value], "sum")


def test_what_the_branch_of_an_if_reads_is_left_as_it_is(tmp_path: Path) -> None:
    b = Builder()
    layer = b.conv(b.node("Identity", ["images"], "same"), "layer", quantized=False)
    parts = [b.constant(f"norm.{part}", np.full(CHANNELS, 0.5)) for part in ("gamma", "beta", "mean", "var")]
    norm = b.node("BatchNormalization", [layer, *parts], "norm")
    for read, changes in (
        (layer, ("same: removed, Identity hands its input on.",)),
        ("same", ("norm: folded into layer.",)),
    ):
        copy = Builder()
        copy.nodes, copy.constants = [*b.nodes], [*b.constants]
        model = copy.model(in_branch(read, copy, norm))
        repair = write_repaired(model, tmp_path / "out.onnx", ORT)
        assert repair.changes == changes
        assert repair.sqnr_db > 100


def test_a_graph_that_lists_its_weights_among_the_inputs_is_mended(tmp_path: Path) -> None:
    model = normalised_conv()
    entries = [helper.make_tensor_value_info(e.name, e.data_type, e.dims) for e in model.graph.initializer]
    model.graph.input.extend(entries)
    repair = write_repaired(model, tmp_path / "out.onnx", ORT)
    assert repair.changes == ("norm: folded into layer.",)
    assert [value.name for value in onnx.load(tmp_path / "out.onnx").graph.input] == ["images"]


def test_in_half_precision_nothing_is_folded_and_the_bias_keeps_its_type(tmp_path: Path) -> None:
    b = Builder()
    b.constants += [onnx.numpy_helper.from_array(np.full(CHANNELS, 0.5, np.float16), f"norm.{n}") for n in range(4)]
    weight = b.constant("w", b.rng.standard_normal((CHANNELS, CHANNELS, 3, 3)), np.float16)
    codes = b.constant("codes", np.arange(CHANNELS), np.int32)
    bias = b.node("DequantizeLinear", [codes, b.constant("step", np.full(CHANNELS, 0.5), np.float16)], "bias", axis=0)
    layer = b.node("Conv", [b.node("Cast", ["images"], "half", to=TensorProto.FLOAT16), weight, bias], "layer")
    norm = b.node("BatchNormalization", [layer, *(f"norm.{n}" for n in range(4))], "norm")
    model = b.model(b.node("Cast", [norm], "out", to=TensorProto.FLOAT), opset=19)
    repair = write_repaired(model, tmp_path / "out.onnx", TENSORRT)
    assert repair.changes == ("bias: the int32 bias became float, the same numbers.",)
