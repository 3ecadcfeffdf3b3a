"""Packed weights in ONNX: the same function in ONNX Runtime and OpenVINO, from a smaller file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from edgekd.core.bundle import ModelBundle
from edgekd.core.stage import Context
from edgekd.errors import BuildFailed, UserError
from edgekd.quant import codebook, codebook_stage
from edgekd.quant.bucket import Quantized, WeightGrid, decode, quantized
from edgekd.quant.codebook import codebook_from_float32
from edgekd.quant.codebook_stage import CodebookConfig, CodebookStage
from edgekd.quant.codes import CODES_FILE, write_codes
from edgekd.quant.differentiable_quantization import LearnedLevels
from edgekd.runtimes.compare import logits_of
from edgekd.runtimes.onnx_file import graph_from_file, write_graph
from edgekd.runtimes.onnxruntime import RUNTIME, emulated
from edgekd.runtimes.openvino import RUNTIME as OPENVINO
from edgekd.runtimes.samples import random_images
from edgekd.runtimes.session import computes_in_int8, open_bundle
from edgekd.testing.harness import make_context, make_inputs, run_stage
from edgekd.testing.toy_graphs import toy_graph, toy_onnx_bundle
from edgekd.testing.toys import toy_bundle

IMAGES = random_images((3, 8, 8), samples=6, seed=0)
NAMES = ("stem.weight", "block.weight", "head.weight")
FORMS = ["channel2", "channel3", "channel4", "channel8", "bucket2", "bucket4", "bucket8", "levels2", "levels3"]


def codes_of(form: str, weight: np.ndarray) -> Quantized:
    kind, bits = form[:-1], int(form[-1])
    value = torch.from_numpy(weight.copy())
    if kind == "levels":
        return LearnedLevels(value, 2**bits, 50, "quantile").quantized()
    return quantized(value, WeightGrid.parse({"bits": bits, "granularity": kind, "bucket_size": 50}, "test"))


def coded_graph(form: str, *, folded: bool = False) -> tuple[onnx.ModelProto, dict[str, Quantized]]:
    """The toy graph on a grid, its weights times a factor per channel as after the folding of BatchNorm, and codes."""
    model, rng, coded = toy_graph(), np.random.default_rng(0), {}
    for entry in model.graph.initializer:
        if entry.name in NAMES:
            q = coded[entry.name] = codes_of(form, numpy_helper.to_array(entry))
            factor = rng.uniform(-2, 2, len(q.codes) if q.offset is None else q.shape[0]) if folded else np.ones(1)
            value = decode(q).numpy() * factor.astype(np.float32).reshape(-1, *[1] * (len(q.shape) - 1))
            entry.CopyFrom(numpy_helper.from_array(value, entry.name))
    return model, coded


def logits(model: onnx.ModelProto, path: Path, *, unpacks: bool = True) -> np.ndarray:
    write_graph(model, path, made_by="test")
    with (emulated if unpacks else RUNTIME.open)(path) as session:
        return logits_of(session, IMAGES)


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_codes_compute_what_weights_compute(tmp_path: Path, form: str, folded: bool) -> None:
    model, coded = coded_graph(form, folded=folded)
    made = codebook_from_float32(model, coded)
    expected = logits(model, tmp_path / "full.onnx")
    for unpacks in (True, False):
        found = logits(made, tmp_path / "codes.onnx", unpacks=unpacks)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    floats = [e for e in made.graph.initializer if e.data_type == TensorProto.FLOAT]
    assert not {entry.name for entry in floats} & set(NAMES)
    assert (tmp_path / "codes.onnx").stat().st_size < (tmp_path / "full.onnx").stat().st_size


@pytest.mark.parametrize(("form", "kind"), [("channel4", "INT4"), ("bucket4", "UINT4"), ("channel8", "INT8")])
def test_codes_have_the_smallest_type_that_runtimes_read(form: str, kind: str) -> None:
    made = codebook_from_float32(*coded_graph(form))
    entry = next(e for e in made.graph.initializer if e.name == "block.weight_codes")
    assert TensorProto.DataType.Name(entry.data_type) == kind
    assert made.opset_import[0].version == (17 if kind == "INT8" else 21)


@pytest.mark.parametrize("form", ["channel2", "bucket2", "levels2"])
@pytest.mark.parametrize("size", [2304, 9 * 16 * 17 + 45])
def test_codes_of_two_bits_take_two_bits(tmp_path: Path, form: str, size: int) -> None:
    """Four to a byte, however many there are, and the same in every runtime."""
    weight = np.random.default_rng(0).normal(size=(1, size)).astype(np.float32)
    q = codes_of(form, weight)
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Gemm", ["images", "w"], ["logits"], transB=1)],
            "one layer",
            [onnx.helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", size])],
            [onnx.helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 1])],
            [numpy_helper.from_array(decode(q).numpy(), "w")],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 20)],
    )
    model.ir_version = 10
    made = codebook_from_float32(model, {"w": q})
    onnx.checker.check_model(made, full_check=True)
    (packed,) = (entry for entry in made.graph.initializer if entry.name == "w_codes_packed")
    assert (packed.data_type, packed.dims[0]) == (TensorProto.UINT8, -(-q.codes.numel() // 4))
    write_graph(made, tmp_path / "codes.onnx", made_by="test")
    eye = np.eye(size, dtype=np.float32)
    for runtime in (RUNTIME, OPENVINO):
        with runtime.open(tmp_path / "codes.onnx") as session:
            found = session.infer({"images": eye})["logits"]
        np.testing.assert_allclose(found[:, 0], decode(q).numpy()[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["channel2", "bucket2"])
def test_weights_of_two_bits_share_one_table(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codebook, "FEWEST_IN_BYTES", 1)
    model, coded = coded_graph(form)
    made = codebook_from_float32(model, coded)
    names = [entry.name for entry in made.graph.initializer]
    assert sum(name.endswith("_codes_packed") for name in names) == len(NAMES)
    assert sum(name.startswith("codes_in_a_byte") for name in names) == 1
    expected = logits(model, tmp_path / "full.onnx")
    found = logits(made, tmp_path / "codes.onnx")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_a_graph_of_an_old_opset_is_converted_for_four_bits_and_not_only_renumbered(tmp_path: Path) -> None:
    """ReduceMean has its axes as an attribute up to opset 17, and as an input from 18 on."""
    model, coded = coded_graph("channel4")
    pool = next(node for node in model.graph.node if node.name == "pool")
    value, made = pool.input[0], pool.output[0]
    pool.CopyFrom(onnx.helper.make_node("ReduceMean", [value], [made], "pool", axes=[2, 3], keepdims=1))
    converted = codebook_from_float32(model, coded)
    onnx.checker.check_model(converted, full_check=True)
    expected = logits(model, tmp_path / "full.onnx")
    found = logits(converted, tmp_path / "codes.onnx")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_a_graph_that_cannot_be_converted_is_refused_with_the_opset_to_export() -> None:
    model, coded = coded_graph("channel4")
    model.graph.node[-1].input[0] = "nowhere"
    with pytest.raises(
        BuildFailed, match="Weights of up to 4 bits need opset 21, and the graph of opset 17 cannot be"
    ) as e:
        codebook_from_float32(model, coded)
    assert e.value.hint == "export with opset=20 or above"


def test_levels_are_gathered_and_even_grids_dequantized() -> None:
    for form, operator in (("levels3", "Gather"), ("channel4", "DequantizeLinear"), ("bucket4", "DequantizeLinear")):
        nodes = codebook_from_float32(*coded_graph(form)).graph.node
        assert sum(node.op_type == operator for node in nodes) == len(NAMES)


@pytest.mark.parametrize("form", ["channel4", "bucket4", "levels3"])
def test_a_renamed_and_transposed_weight_is_found_by_its_values(tmp_path: Path, form: str) -> None:
    model, coded = coded_graph(form, folded=True)
    head = next(entry for entry in model.graph.initializer if entry.name == "head.weight")
    turned = np.ascontiguousarray(numpy_helper.to_array(head).T)
    head.CopyFrom(numpy_helper.from_array(turned, "val_7"))
    node = model.graph.node[-1]
    node.input[1] = "val_7"
    del node.attribute[:]
    expected = logits(model, tmp_path / "full.onnx")
    found = logits(codebook_from_float32(model, coded), tmp_path / "codes.onnx")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_codes_of_another_model_are_refused() -> None:
    model, coded = coded_graph("channel4")
    other = {"block.weight": codes_of("channel4", np.random.default_rng(9).normal(size=(16, 16, 3, 3)))}
    with pytest.raises(BuildFailed, match=r"holds no weight that is 'block\.weight'"):
        codebook_from_float32(model, {**coded, **other})


# ---- the stage


def connected(folder: Path, form: str = "levels3") -> tuple[Context, ModelBundle, ModelBundle]:
    """A context, an FP32 graph, and a TORCH bundle with its codes."""
    ctx = make_context(folder)
    model, coded = coded_graph(form)
    path = folder / "full.onnx"
    write_graph(model, path, made_by="test")
    full = toy_onnx_bundle(ctx.blobs, ctx.scratch).model_copy(update={"files": {"model.onnx": ctx.blobs.add(path)}})
    write_codes(folder / CODES_FILE, {name: decode(q) for name, q in coded.items()}, coded)
    weights = toy_bundle(ctx.blobs, ctx.scratch)
    files = {**weights.files, CODES_FILE: ctx.blobs.add(folder / CODES_FILE)}
    return ctx, full, weights.model_copy(update={"files": files, "tags": {"weights_bits": 3}})


@pytest.mark.parametrize("form", ["channel2", "channel4", "channel8", "bucket2", "bucket4", "levels3"])
def test_the_stage_gives_a_smaller_graph_that_runtimes_run(tmp_path: Path, form: str) -> None:
    ctx, full, weights = connected(tmp_path, form)
    result = run_stage(CodebookStage(CodebookConfig()), make_inputs(model=full, weights=weights), ctx)
    assert result.bundle.tags == {"precision": "fp32", "scheme": "weight-only", "weights_bits": 3}
    assert not computes_in_int8(result.bundle)
    assert float(str(result.metrics["sqnr_db"])) > 80
    assert float(str(result.metrics["size_mib"])) < float(str(result.metrics["size_mib_before"]))
    assert "nothing gets faster" in result.decisions[0]
    for runtime in ("onnxruntime", "openvino"):
        with open_bundle(full, ctx.blobs, runtime) as one, open_bundle(result.bundle, ctx.blobs, runtime) as other:
            expected, found = (session.infer({"images": IMAGES})["logits"] for session in (one, other))
        np.testing.assert_allclose(found, expected, rtol=0, atol=0.02 * np.abs(expected).max())
    assert graph_from_file(ctx.path(result.bundle, "model.onnx")).producer_name == "edgekd"


def test_a_bundle_without_codes_or_a_graph_that_is_not_fp32_is_refused(tmp_path: Path) -> None:
    ctx, full, weights = connected(tmp_path)
    plain = toy_bundle(ctx.blobs, ctx.scratch)
    stage = CodebookStage(CodebookConfig())
    with pytest.raises(UserError, match=r"has no codes\.safetensors"):
        run_stage(stage, make_inputs(model=full, weights=plain), ctx)
    half = full.model_copy(update={"tags": {"precision": "fp16"}})
    with pytest.raises(UserError, match="takes an FP32 graph, but its input is fp16"):
        run_stage(stage, make_inputs(model=half, weights=weights), ctx)


def test_a_graph_that_computes_something_else_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ctx, full, weights = connected(tmp_path)
    monkeypatch.setattr(codebook_stage, "codebook_from_float32", lambda *_: toy_graph(seed=5))
    with pytest.raises(BuildFailed, match="differs from the graph with weights"):
        run_stage(CodebookStage(CodebookConfig()), make_inputs(model=full, weights=weights), ctx)
