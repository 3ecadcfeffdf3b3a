"""Foreign graphs in the form that quantizers expect, proven to compute the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.preprocess import Preprocessing
from edgekd.core.recipe import ModelRecipe
from edgekd.core.stage import Context, StageResult
from edgekd.errors import BuildFailed
from edgekd.export import conform
from edgekd.export.conform import ConformConfig, ConformStage
from edgekd.runtimes.onnx_file import MODEL_FILE, graph_from_file, onnx_interface
from edgekd.runtimes.onnxruntime import RUNTIME
from edgekd.testing.harness import make_context, make_inputs, run_stage

SIZE = 4


def old_graph(*, opset: int = 11, rows: int = -1) -> onnx.ModelProto:
    """As an exporter of 2020 wrote it: batch 1, weights among the inputs, a BatchNorm, a reshape to `rows` rows."""
    rng = np.random.default_rng(0)
    arrays = {
        "w": rng.standard_normal((5, 3, 3, 3)).astype(np.float32),
        "scale": np.full(5, 1.5, np.float32),
        "bias": np.full(5, 0.5, np.float32),
        "mean": np.zeros(5, np.float32),
        "var": np.ones(5, np.float32),
        "rows": np.array([rows, 5 * SIZE * SIZE], np.int64),
    }
    nodes = [
        helper.make_node("Conv", ["images", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "scale", "bias", "mean", "var"], ["b"]),
        helper.make_node("Reshape", ["b", "rows"], ["flat"]),
    ]
    inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, SIZE, SIZE])]
    inputs += [
        helper.make_tensor_value_info(name, TensorProto.INT64 if name == "rows" else TensorProto.FLOAT, value.shape)
        for name, value in arrays.items()
    ]
    graph = helper.make_graph(
        nodes, "old", inputs,
        [helper.make_tensor_value_info("flat", TensorProto.FLOAT, [1, 5 * SIZE * SIZE])],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=6)


def conformed(ctx: Context, model: onnx.ModelProto) -> tuple[Path, StageResult]:
    """The old file, and what the stage made of it."""
    path = ctx.scratch / "old.onnx"
    onnx.save(model, path)
    inputs, outputs = onnx_interface(path)
    bundle = ModelBundle(
        kind=BundleKind.ONNX, inputs=inputs, outputs=outputs, files={MODEL_FILE: ctx.blobs.add(path)},
        recipe=ModelRecipe(builder="onnx", preprocessing=Preprocessing(size=(SIZE, SIZE))),
        tags={"precision": "fp32", "scheme": ""},
    )  # fmt: skip
    return path, run_stage(ConformStage(ConformConfig()), make_inputs(model=bundle), ctx)


def test_an_old_graph_gets_one_input_a_dynamic_batch_and_a_new_opset_and_computes_the_same(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    old, result = conformed(ctx, old_graph())
    assert [(spec.name, spec.shape) for spec in result.bundle.inputs] == [("images", ("N", 3, SIZE, SIZE))]
    assert result.decisions == ("Converted from opset 11 to 17.",)
    assert result.metrics["dynamic_batch"] is True
    path = ctx.path(result.bundle, MODEL_FILE)
    assert [node.op_type for node in graph_from_file(path).graph.node].count("BatchNormalization") == 0
    images = np.random.default_rng(1).standard_normal((4, 3, SIZE, SIZE)).astype(np.float32)
    with RUNTIME.open(old) as before, RUNTIME.open(path) as after:
        expected = np.concatenate([before.infer({"images": image[None]})["flat"] for image in images])
        np.testing.assert_allclose(after.infer({"images": images})["flat"], expected, rtol=1e-4, atol=1e-4)


def test_a_graph_that_cannot_take_a_batch_keeps_its_own_and_says_so(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    _, result = conformed(ctx, old_graph(rows=1))
    assert result.bundle.inputs[0].shape[0] == 1
    assert result.metrics["dynamic_batch"] is False
    assert "The batch stays fixed, since the graph answers otherwise with a dynamic one" in result.decisions[1]


def test_a_graph_that_would_answer_otherwise_is_not_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoilt(model: onnx.ModelProto) -> onnx.ModelProto:
        weights = next(entry for entry in model.graph.initializer if entry.name == "w")
        weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) * 1.1, "w"))
        return model

    monkeypatch.setattr(conform, "simplified", spoilt)
    with pytest.raises(BuildFailed, match=r"its outputs differ by .* of their spread"):
        conformed(make_context(tmp_path), old_graph())
