"""2:4 sparsity: the mask, the training that keeps it, and what the bundle and the decisions say of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import nn

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.graph import Graph, Node, validate_graph
from edgekd.core.stage import Context, StageResult
from edgekd.errors import BuildFailed, UserError
from edgekd.export.stage import ExportConfig, ExportStage
from edgekd.nn.build import module_from_bundle
from edgekd.pipeline.stages import STAGES
from edgekd.prune.sparse_stage import SparseDistillConfig, SparseDistillStage
from edgekd.prune.sparsity import SparseWeights, follows_pattern, n_of_m_mask
from edgekd.runtimes.onnx_file import MODEL_FILE
from edgekd.testing.harness import make_context, make_inputs, run_stage
from edgekd.testing.toy_data import toy_dataset
from edgekd.testing.toys import toy_bundle, toy_cnn


def test_the_two_largest_of_four_input_channels_stay() -> None:
    weight = torch.tensor([[1.0, -4.0, 3.0, 2.0, 0.0, 0.0, 0.5, -0.1]])
    assert n_of_m_mask(weight, 2, 4).tolist() == [[False, True, True, False, False, False, True, True]]


def test_ties_keep_the_first() -> None:
    assert n_of_m_mask(torch.ones(1, 4), 2, 4).tolist() == [[True, True, False, False]]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.sampled_from([1, 3]), st.integers(0, 99))
def test_every_kernel_position_follows_the_pattern_and_no_other_mask_keeps_more(
    out: int, blocks: int, kernel: int, seed: int
) -> None:
    weight = torch.randn(out, 4 * blocks, kernel, kernel, generator=torch.Generator().manual_seed(seed))
    mask = n_of_m_mask(weight, 2, 4)
    assert follows_pattern(weight * mask, 2, 4)
    assert int(mask.sum()) * 2 == weight.numel()
    parts = weight.abs().movedim(1, -1).unflatten(-1, (-1, 4))
    best = parts.sort(-1, descending=True).values[..., :2].sum()
    torch.testing.assert_close((weight.abs() * mask).sum(), best)


def test_a_dense_weight_does_not_follow_the_pattern() -> None:
    assert not follows_pattern(torch.ones(1, 4), 2, 4)


def test_weights_are_masked_for_the_step_and_whole_again_after_it() -> None:
    module = toy_cnn()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    weights = SparseWeights(2, 4)
    weights.bind(module)
    with weights.applied():
        assert all(follows_pattern(module.get_parameter(f"{path}.weight"), 2, 4) for path in weights.names)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert weights.names == tuple(layer_names()[1:])  # the first layer reads 3 channels
    assert any("no multiple of 4" in why for why in weights.stayed.values())


def sparse(folder: Path, **config: Any) -> tuple[ModelBundle, StageResult, Context]:
    ctx = make_context(folder, resources={"data": toy_dataset()})
    student = toy_bundle(ctx.blobs, ctx.scratch)
    stage = SparseDistillStage(SparseDistillConfig(epochs=2, batch_size=16, lr=0.05, **config))
    ports = make_inputs(student=student, teacher=toy_bundle(ctx.blobs, ctx.scratch, seed=1))
    return student, run_stage(stage, ports, ctx), ctx


def test_the_pattern_survives_the_training_and_is_recorded(tmp_path: Path) -> None:
    student, result, ctx = sparse(tmp_path)
    module, before = (module_from_bundle(bundle, ctx.blobs) for bundle in (result.bundle, student))
    assert result.bundle.tags["sparsity"] == "2:4"
    layers = result.bundle.tags["sparse_layers"]
    assert isinstance(layers, list)
    for path in layers:
        weight, old = (network.get_parameter(f"{path}.weight") for network in (module, before))
        assert follows_pattern(weight, 2, 4)
        assert torch.equal(weight != 0, n_of_m_mask(old, 2, 4))  # the mask is the one of the trained weights
        assert not torch.equal(weight[weight != 0], old[weight != 0])
    assert 0.3 < result.metrics["zero_weights_share"] < 0.5  # type: ignore[operator]
    assert 0.5 < result.metrics["sparse_macs_share"] < 1  # type: ignore[operator]


@pytest.mark.slow
def test_the_exported_graph_keeps_the_zeros_and_says_so(tmp_path: Path) -> None:
    _, result, ctx = sparse(tmp_path)
    exported = run_stage(ExportStage(ExportConfig()), make_inputs(model=result.bundle), ctx).bundle
    assert exported.tags["sparsity"] == "2:4"
    graph = onnx.load(ctx.path(exported, MODEL_FILE)).graph
    weights = [torch.from_numpy(numpy_helper.to_array(value).copy()) for value in graph.initializer]
    kernels = [weight for weight in weights if weight.ndim == 4 and weight.shape[1] % 4 == 0]
    assert kernels
    assert all(follows_pattern(weight, 2, 4) for weight in kernels)


def test_what_stayed_dense_and_who_uses_the_zeros_is_said(tmp_path: Path) -> None:
    _, result, _ = sparse(tmp_path)
    said = " ".join(result.decisions)
    assert "3 input channels are no multiple of 4" in said
    assert "ONNX Runtime and OpenVINO compute these layers densely" in said


def test_excluded_layers_stay_dense(tmp_path: Path) -> None:
    _, *inner, last = layer_names()
    _, result, ctx = sparse(tmp_path, exclude=(last,))
    assert result.bundle.tags["sparse_layers"] == inner
    weight = module_from_bundle(result.bundle, ctx.blobs).get_parameter(f"{last}.weight")
    assert not follows_pattern(weight, 2, 4)


def layer_names() -> list[str]:
    return [path for path, part in toy_cnn().named_modules() if isinstance(part, nn.Conv2d | nn.Linear)]


def test_an_unknown_layer_to_exclude_is_refused_with_the_near_one(tmp_path: Path) -> None:
    name = layer_names()[-1]
    with pytest.raises(UserError, match=f"no convolution or linear layer of the student.* Did you mean '{name}'"):
        sparse(tmp_path, exclude=(f"{name}x",))


def test_a_network_that_cannot_hold_the_pattern_is_refused_with_the_reasons() -> None:
    with pytest.raises(UserError, match=r"No layer of the student can hold 2:4 sparsity \(0: 3 input channels"):
        SparseWeights(2, 4).bind(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8)))


def test_a_result_that_lost_its_zeros_is_refused(tmp_path: Path) -> None:
    student, result, ctx = sparse(tmp_path)
    dense = StageResult(bundle=student, metrics=result.metrics)
    with pytest.raises(BuildFailed, match="do not follow 2:4"):
        SparseDistillStage(SparseDistillConfig()).ensures(make_inputs(student=student), dense, ctx)


@pytest.mark.parametrize("later", ["distill", "prune", "quantized-distill", "differentiable-quantize"])
def test_no_stage_that_would_fill_the_zeros_may_follow(later: str) -> None:
    port = "model" if later == "prune" else "student"
    nodes = (
        Node(name="sparse", stage="sparse-distill", config={}, inputs={"student": ("@student",)}),
        Node(
            name="next",
            stage=later,
            config={"macs_keep": 0.5} if later == "prune" else {},
            inputs={port: ("sparse",)},
        ),
    )
    with pytest.raises(UserError, match="sparse"):
        validate_graph(Graph(inputs={"student": BundleKind.TORCH}, nodes=nodes), STAGES)


def test_quantization_aware_training_has_no_mask_and_may_not_follow_either() -> None:
    nodes = (
        Node(name="sparse", stage="sparse-distill", config={}, inputs={"student": ("@student",)}),
        Node(name="fp32", stage="export", config={}, inputs={"model": ("sparse",)}),
        Node(name="int8", stage="quantize", config={"scheme": "ort-u8s8"}, inputs={"model": ("fp32",)}),
        Node(name="trained", stage="qat", config={}, inputs={"model": ("int8",)}),
    )
    with pytest.raises(UserError, match=r"'sparse' .* must not come before node 'trained'"):
        validate_graph(Graph(inputs={"student": BundleKind.TORCH}, nodes=nodes), STAGES)
