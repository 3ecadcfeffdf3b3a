"""Training a Q/DQ graph: the same numbers before and after, which ones train, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper

from edgekd.errors import BuildFailed
from edgekd.lint.requantized import keep_float_weights_
from edgekd.nn.onnx_module import OnnxModule
from edgekd.quant.averaged import Grid, RangeAverages
from edgekd.quant.fake_quant import fake_quantized, rounded_to, wide_step
from edgekd.quant.observe import observe
from edgekd.quant.onnxruntime import cpu_form, prepared_graph, tensorrt_form
from edgekd.quant.qat import QatNetwork, Ranges
from edgekd.quant.ranges import range_of
from edgekd.quant.weight_only import weight_only_from_float32
from edgekd.runtimes.compare import logits_of
from edgekd.runtimes.onnx_file import write_graph
from edgekd.runtimes.onnxruntime import emulated
from edgekd.runtimes.samples import random_images
from edgekd.testing.toy_graphs import toy_graph

IMAGES = random_images((3, 8, 8), samples=24, seed=0)
LABELS = torch.arange(24) % 4


def quantized(
    folder: Path,
    scheme: str,
    *,
    reduce_range: bool = True,
    exclude: tuple[str, ...] = (),
    full: onnx.ModelProto | None = None,
) -> onnx.ModelProto:
    if scheme == "weight-only":
        return weight_only_from_float32(toy_graph())
    source = folder / "source.onnx"
    write_graph(full or toy_graph(), source, made_by="test")
    full = prepared_graph(source, folder)
    form = tensorrt_form(full, attention=False)
    if scheme == "ort-u8s8":
        form = cpu_form(full, reduce_range=reduce_range, attention=False)
    seen = observe(full, IMAGES).histograms
    ranges = {name: range_of(found, "minmax", symmetric=form.symmetric) for name, found in seen.items()}
    return form.build(ranges, exclude)


def deployed_logits(model: onnx.ModelProto, folder: Path) -> np.ndarray:
    path = folder / "deployed.onnx"
    write_graph(model, path, made_by="test")
    with emulated(path) as session:
        return logits_of(session, IMAGES)


def train_(network: QatNetwork, *, steps: int = 20, lr: float = 0.02) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(network(torch.from_numpy(IMAGES)), LABELS).backward()
        optimizer.step()


def nearly_without_weights(folder: Path) -> onnx.ModelProto:
    """A calibrated graph of which a channel of `block` has a bias and next to no weights."""
    full = toy_graph()
    for entry in full.graph.initializer:
        if entry.name in ("block.weight", "block.bias"):
            array = numpy_helper.to_array(entry).copy()
            array[1] = array[1] * 1e-9 if array.ndim > 1 else 0.75
            entry.CopyFrom(numpy_helper.from_array(array, entry.name))
    return quantized(folder, "ort-u8s8", full=full)


def codes_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {
        entry.name: numpy_helper.to_array(entry)
        for entry in model.graph.initializer
        if entry.data_type == TensorProto.INT8 and len(entry.dims) >= 2
    }


@pytest.mark.parametrize("scheme", ["ort-u8s8", "tensorrt-s8", "weight-only"])
def test_the_network_computes_what_the_graph_computes_before_and_after_training(tmp_path: Path, scheme: str) -> None:
    model = quantized(tmp_path, scheme)
    network = QatNetwork(model)
    for trained in (False, True):
        if trained:
            train_(network)
        with torch.no_grad():
            logits = network(torch.from_numpy(IMAGES)).numpy()
        np.testing.assert_allclose(deployed_logits(network.graph(), tmp_path), logits, atol=1e-5)
    assert np.abs(logits - deployed_logits(model, tmp_path)).max() > 0.05
    assert list(network.graph().graph.node) == list(model.graph.node)


def test_a_scale_that_is_repeated_before_a_layer_in_float_trains_with_the_one_it_repeats(tmp_path: Path) -> None:
    model = quantized(tmp_path, "ort-u8s8", exclude=("block",))
    assert keep_float_weights_(model)
    network = QatNetwork(model)
    train_(network)
    made = network.graph()
    with torch.no_grad():
        logits = network(torch.from_numpy(IMAGES)).numpy()
    np.testing.assert_allclose(deployed_logits(made, tmp_path), logits, atol=1e-5)
    before, after = (
        {entry.name: numpy_helper.to_array(entry) for entry in graph.graph.initializer} for graph in (model, made)
    )
    (quantize,) = (n for n in made.graph.node if n.op_type == "QuantizeLinear" and n.output[0] in repeated_of(made))
    name = repeated_of(made)[quantize.output[0]]
    assert (after[name] == after[quantize.input[1]]).all()
    assert after[name][0] != before[name][0]


def repeated_of(model: onnx.ModelProto) -> dict[str, str]:
    """Scales of several numbers for activations, by the codes that they decode."""
    made = {name for node in model.graph.node if node.op_type == "QuantizeLinear" for name in node.output}
    sizes = {entry.name: int(np.prod(entry.dims)) for entry in model.graph.initializer}
    return {
        node.input[0]: node.input[1]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in made and sizes[node.input[1]] > 1
    }


@pytest.mark.parametrize("scheme", ["ort-u8s8", "tensorrt-s8"])
def test_training_lowers_the_loss_through_the_quantizers(tmp_path: Path, scheme: str) -> None:
    network = QatNetwork(quantized(tmp_path, scheme))
    images = torch.from_numpy(IMAGES)
    before = float(F.cross_entropy(network(images), LABELS).detach())
    train_(network)
    assert float(F.cross_entropy(network(images), LABELS).detach()) < 0.8 * before


def test_a_graph_that_was_not_trained_comes_back_with_the_same_codes(tmp_path: Path) -> None:
    model = quantized(tmp_path, "ort-u8s8")
    before, after = codes_of(model), codes_of(QatNetwork(model).graph())
    assert before
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(("reduce_range", "largest"), [(True, 64), (False, 127)])
def test_weights_stay_in_the_range_that_calibration_left_them(tmp_path: Path, reduce_range: bool, largest: int) -> None:
    network = QatNetwork(quantized(tmp_path, "ort-u8s8", reduce_range=reduce_range))
    with torch.no_grad():
        for weight in network.weights:
            network.constant(weight).mul_(3)
    codes = codes_of(network.graph())
    assert {int(np.abs(value.astype(int)).max()) for value in codes.values()} == {largest}
    np.testing.assert_allclose(
        deployed_logits(network.graph(), tmp_path), network(torch.from_numpy(IMAGES)).detach().numpy(), atol=1e-4
    )


@pytest.mark.parametrize("ranges", ["learned", "calibrated"])
def test_a_bias_keeps_its_sign_where_training_narrows_the_steps_of_a_channel_without_weights(
    tmp_path: Path, ranges: Ranges
) -> None:
    model = nearly_without_weights(tmp_path)
    network = QatNetwork(model, ranges)
    (bias,) = (found for name, found in network.biases.items() if name.startswith("block"))
    codes = {entry.name: entry for entry in model.graph.initializer}[bias.name]
    assert numpy_helper.to_array(codes)[1] > 2**31 * 0.999, "the quantizer leaves no room"
    assert network.widened() == ()
    with torch.no_grad():
        network.constant(bias.input_step).mul_(0.9)  # as training may
    (name,) = network.widened()
    assert name.startswith("block")
    assert name.endswith("[1]")
    made = {entry.name: numpy_helper.to_array(entry) for entry in network.graph().graph.initializer}
    assert made[bias.name][1] * made[bias.step][1] == pytest.approx(0.75, rel=1e-6)
    with torch.no_grad():
        logits = network(torch.from_numpy(IMAGES)).numpy()
    np.testing.assert_allclose(deployed_logits(network.graph(), tmp_path), logits, atol=1e-5)
    train_(network)
    assert torch.isfinite(network.step(bias.weight_step)).all()


def test_a_step_for_the_whole_weight_is_as_wide_as_its_largest_bias_needs() -> None:
    step = torch.tensor(1e-9, requires_grad=True)
    wide = wide_step(step, torch.tensor(0.5), torch.tensor([0.1, -3.0]))
    assert float(wide.detach()) == pytest.approx(3.0 / 0.5 / 2**31, rel=1e-5)
    assert 3.0 / (0.5 * float(wide.detach())) < 2**31 - 1
    enough = wide_step(torch.tensor(0.1, requires_grad=True), torch.tensor(0.5), torch.tensor([0.1, -3.0]))
    assert float(enough.detach()) == pytest.approx(0.1)
    enough.backward()


def test_calibrated_ranges_stay_and_learned_ones_move(tmp_path: Path) -> None:
    model = quantized(tmp_path, "ort-u8s8")
    for ranges, moves in (("learned", True), ("calibrated", False)):
        network = QatNetwork(model, "learned" if moves else "calibrated")
        steps = {step: network.constant(step).clone() for step in network.activations.values()}
        train_(network, steps=5)
        moved = [not torch.equal(network.constant(step), was) for step, was in steps.items()]
        assert any(moved) == moves, ranges


def test_averaged_ranges_follow_the_extremes_for_their_steps_and_then_stand_still(tmp_path: Path) -> None:
    model = quantized(tmp_path, "ort-u8s8")
    network = QatNetwork(model, "average", followed_steps=6)
    grid = network.grids["images"]
    step, zero, _ = network._grid("images")
    with torch.no_grad():
        step.mul_(3)  # a calibration that was far off
    first, zero_point = float(step), float(zero)
    wanted = max(IMAGES.max() / (grid.high - zero_point), IMAGES.min() / (grid.low - zero_point))
    before = {name: network.constant(name).clone() for name in network.activations.values()}
    with torch.no_grad():
        network(torch.from_numpy(IMAGES))
    assert float(step) == first, "evaluation moves nothing"
    network.train()
    train_(network, steps=4)
    assert float(step) == pytest.approx(wanted + (first - wanted) * 0.99**4, rel=1e-5)
    resumed = QatNetwork(model, "average", followed_steps=6).train()
    resumed.load_state_dict(network.state_dict())
    train_(resumed, steps=20)
    assert float(resumed._grid("images")[0]) == pytest.approx(wanted + (first - wanted) * 0.99**6, rel=1e-5)
    moved = [not torch.equal(resumed.constant(name), was) for name, was in before.items()]
    assert all(moved)
    written = {entry.name: numpy_helper.to_array(entry) for entry in resumed.graph().graph.initializer}
    assert float(written[grid.step]) == pytest.approx(float(resumed._grid("images")[0]))
    assert not resumed.constant(grid.step).requires_grad


def test_a_symmetric_range_follows_the_larger_extreme_of_both_signs() -> None:
    averages = RangeAverages(1000).train()
    step, zero = torch.tensor(1.0), torch.tensor(0.0)
    grid = Grid(step="s", zero="", low=-128, high=127)
    for _ in range(2000):
        averages.follow_({"x": (torch.tensor(-64.0), torch.tensor(12.7))}, {"x": (step, zero, grid)})
    assert float(step) == pytest.approx(0.5, rel=1e-3)
    assert not averages.active


def test_constant_activations_are_named(tmp_path: Path) -> None:
    network = QatNetwork(quantized(tmp_path, "ort-u8s8"))
    assert network.constant_activations(torch.from_numpy(IMAGES)) == ()
    with torch.no_grad():
        for weight in network.weights:
            if weight.startswith("block"):
                network.constant(weight).zero_()
        for bias in network.biases:
            if bias.startswith("block"):
                network.constant(bias).zero_()
    assert network.constant_activations(torch.from_numpy(IMAGES)) == ("block",)


def test_a_graph_without_quantizers_is_refused() -> None:
    with pytest.raises(BuildFailed, match="no Q/DQ pair"):
        QatNetwork(toy_graph())


def test_codes_that_nothing_dequantizes_are_refused(tmp_path: Path) -> None:
    model = quantized(tmp_path, "ort-u8s8")
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0].startswith("logits"):
            node.op_type = "Identity"
            del node.input[1:]
    with pytest.raises(BuildFailed, match="its codes go into Identity"):
        QatNetwork(model)


def test_a_bias_whose_layer_reads_floats_is_refused(tmp_path: Path) -> None:
    model = quantized(tmp_path, "ort-u8s8")
    stem = next(node for node in model.graph.node if node.name == "stem")
    stem.input[0] = "images"
    with pytest.raises(BuildFailed, match="32-bit codes are no bias of one quantized layer"):
        QatNetwork(model)


def test_a_pair_with_two_scales_is_refused(tmp_path: Path) -> None:
    model = quantized(tmp_path, "ort-u8s8")
    pair = next(n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.name == "images_DequantizeLinear")
    pair.input[1] = "logits_scale"
    with pytest.raises(BuildFailed, match="scale or zero point is another one"):
        QatNetwork(model)


def test_sixteen_bit_codes_are_refused() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["images", "s", "z"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["logits"], "d"),
    ]
    value = helper.make_tensor_value_info
    constants = [numpy_helper.from_array(np.float32(1), "s"), numpy_helper.from_array(np.uint16(0), "z")]
    shape = ["N", 2]
    graph = helper.make_graph(
        nodes, "g", [value("images", TensorProto.FLOAT, shape)], [value("logits", TensorProto.FLOAT, shape)], constants
    )
    with pytest.raises(BuildFailed, match="its codes are UINT16"):
        QatNetwork(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))


# ---- the rounding itself


def test_values_round_to_even_and_saturate_as_onnx_says() -> None:
    x = torch.tensor([-9.0, -0.5, 0.25, 0.75, 1.25, 99.0])
    got = fake_quantized(x, torch.tensor(0.5), torch.tensor(3), axis=None, low=0, high=10, batched=False)
    assert got.tolist() == [-1.5, -0.5, 0.0, 1.0, 1.0, 3.5]


def test_gradients_are_those_of_learned_step_sizes() -> None:
    x = torch.tensor([-9.0, 0.3, 0.75, 99.0], requires_grad=True)
    step = torch.tensor(0.5, requires_grad=True)
    fake_quantized(x, step, torch.tensor(3), axis=None, low=0, high=10, batched=False).sum().backward()
    assert x.grad is not None
    assert step.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 0]
    inner = (1 - 0.6) + (2 - 1.5)
    assert float(step.grad) == pytest.approx((-3 + inner + 7) / (4 * 10) ** 0.5)  # the paper's Q_P is the largest code


def test_each_channel_has_its_own_step_and_gradient() -> None:
    x = torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    steps = torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64, requires_grad=True)
    options = {"low": -4, "high": 4, "batched": False}
    whole = fake_quantized(x, steps, torch.zeros(3), axis=0, **options)
    whole.pow(2).sum().backward()
    assert steps.grad is not None
    for index in range(3):
        step = steps[index].detach().clone().requires_grad_()
        part = fake_quantized(x[index], step, torch.tensor(0), axis=None, **options)
        part.pow(2).sum().backward()
        assert torch.equal(part, whole[index])
        torch.testing.assert_close(steps.grad[index], step.grad)


def test_the_gradient_of_the_step_is_the_slope_where_values_saturate() -> None:
    x = torch.full((8,), 50.0, dtype=torch.float64)

    def loss(step: torch.Tensor) -> torch.Tensor:
        return fake_quantized(x, step, torch.tensor(0), axis=None, low=-7, high=7, batched=False).sum()

    step = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    loss(step).backward()
    assert step.grad is not None
    slope = (loss(torch.tensor(0.3001, dtype=torch.float64)) - loss(step.detach())) / 0.0001
    assert float(step.grad) == pytest.approx(float(slope) * (8 * 7) ** -0.5)


def test_a_step_that_an_update_made_negative_counts_by_its_magnitude() -> None:
    x = torch.tensor([0.3, -0.8])
    options = {"axis": None, "low": -7, "high": 7, "batched": False}
    both = [fake_quantized(x, torch.tensor(step), torch.tensor(0), **options) for step in (0.2, -0.2)]
    assert torch.equal(*both)


def test_biases_round_to_multiples_and_pass_gradients() -> None:
    bias = torch.tensor([0.26, -0.9], requires_grad=True)
    made = rounded_to(bias, torch.tensor(0.5))
    made.sum().backward()
    assert made.tolist() == [0.5, -1.0]
    assert bias.grad is not None
    assert bias.grad.tolist() == [1, 1]


def test_a_float_graph_is_a_module_of_the_same_function() -> None:
    module = OnnxModule(toy_graph())
    assert set(module.trained()) == {f"{n}.{p}" for n in ("stem", "block", "head") for p in ("weight", "bias")}
