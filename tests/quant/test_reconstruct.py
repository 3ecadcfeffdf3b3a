"""Rounding that minimises the output error, and biases that take over the mean, against exhaustive search and numpy."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgekd.core.events import SilentReporter
from edgekd.errors import UserError
from edgekd.quant.layers import GraphView, add_to_bias_, bias_place, quantized_weight_of
from edgekd.quant.observe import observe
from edgekd.quant.onnxruntime import cpu_form, prepared_graph, tensorrt_form
from edgekd.quant.ptq import PtqConfig, int8_builder
from edgekd.quant.ranges import range_of
from edgekd.quant.reconstruct import apply_refined_, descended, refined_layers
from edgekd.runtimes.onnx_file import write_graph
from edgekd.runtimes.onnxruntime import values_in_graph
from edgekd.runtimes.samples import Samples
from tests.quant.attention import attention
from tests.quant.chains import chain, images

RNG = np.random.default_rng(0)


def objective(codes: np.ndarray, wanted: np.ndarray, gram: np.ndarray) -> np.ndarray:
    error = codes - wanted
    return np.einsum("ok,kl,ol->o", error, gram, error)


def problem(outputs: int, inputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights in units of their scale, and moments of inputs that depend on each other."""
    rows = RNG.standard_normal((200, 3)) @ RNG.standard_normal((3, inputs)) + 0.3 * RNG.standard_normal((200, inputs))
    return RNG.uniform(-20, 20, (outputs, inputs)), rows.T @ rows / 200


def test_descent_comes_near_the_best_of_all_roundings_and_far_below_the_nearest() -> None:
    wanted, gram = problem(12, 9)
    nearest = np.rint(wanted).astype(np.int64)
    found = descended(wanted[None], nearest[None], gram[None], (-127, 127))[0]
    corners = np.array(list(itertools.product((0, 1), repeat=9)))
    best = np.array([objective(np.floor(row) + corners, row[None], gram).min() for row in wanted])
    mine, plain = objective(found, wanted, gram), objective(nearest, wanted, gram)
    assert (mine <= plain + 1e-12).all()
    assert mine.sum() < 0.5 * plain.sum()
    assert mine.sum() < 1.7 * best.sum()
    assert (np.abs(found - wanted) < 1).all()


def test_no_single_move_lowers_the_objective_further() -> None:
    wanted, gram = problem(4, 30)
    found = descended(wanted[None], np.rint(wanted).astype(np.int64)[None], gram[None], (-127, 127))[0]
    before = objective(found, wanted, gram)
    for at in range(30):
        moved = found.copy()
        moved[:, at] = np.floor(wanted[:, at]) + np.ceil(wanted[:, at]) - found[:, at]
        assert (objective(moved, wanted, gram) >= before - 1e-9).all()


def test_codes_stay_within_their_limits() -> None:
    wanted, gram = problem(50, 6)
    start = np.clip(np.rint(wanted), -18, 18).astype(np.int64)
    found = descended(wanted[None], start[None], gram[None], (-18, 18))[0]
    assert np.abs(found).max() <= 18


@pytest.mark.parametrize("form_of", [cpu_form, tensorrt_form])
def test_refined_layers_have_less_error_and_their_graph_says_the_same(tmp_path: Path, form_of: object) -> None:
    write_graph(chain(), tmp_path / "m.onnx", made_by="test")
    full = prepared_graph(tmp_path / "m.onnx", tmp_path)
    form = (
        cpu_form(full, reduce_range=True, attention=False)
        if form_of is cpu_form
        else tensorrt_form(full, attention=False)
    )
    seen = observe(full, images(), moments="full")
    made = form.build({name: range_of(found, "minmax") for name, found in seen.histograms.items()})
    refined = refined_layers(full, made, seen, rounding=True, biases="correct")
    assert set(refined) == {"expand", "depth", "project", "head"}
    nearest = {layer: variance_of_error(full, made, layer) for layer in refined}
    apply_refined_(made, refined)
    onnx.checker.check_model(made, full_check=True)
    for layer, entry in refined.items():
        weight = quantized_weight_of(GraphView(made), layer)
        assert weight is not None
        assert np.array_equal(weight.codes, entry.codes)
    found = {layer: variance_of_error(full, made, layer) for layer in refined}
    assert all(found[layer] <= nearest[layer] for layer in refined)
    assert sum(found.values()) < 0.9 * sum(nearest.values())


def variance_of_error(full: onnx.ModelProto, made: onnx.ModelProto, layer: str) -> float:
    """Of the layer's output on the calibration samples: what a bias does not take away."""
    weight = quantized_weight_of(GraphView(made), layer)
    assert weight is not None
    view = GraphView(full)
    node = view.nodes[layer]
    error = weight.values - view.array(node.input[1])
    alone = onnx.ModelProto()
    alone.CopyFrom(full)
    GraphView(alone).write(node.input[1], error)
    outputs = values_in_graph(alone, {"images": images()})[node.output[0]]
    return float(np.moveaxis(outputs, 1, 0).reshape(outputs.shape[1], -1).var(axis=1).mean())


def test_bias_correction_leaves_no_mean_error_in_a_layer() -> None:
    model = chain()
    seen = observe(model, images(), moments="full")
    weight = GraphView(model).array("project.w")[..., 0, 0]
    rounded = np.rint(weight * 4) / 4
    values = values_in_graph(model, {"images": images()})["depth.act"]
    mean = values.mean(axis=(0, 2, 3))
    assert np.allclose(seen.moments["project"].mean[0], mean, atol=0.1 * np.abs(mean).max())
    shift = -(rounded - weight) @ seen.moments["project"].mean[0]
    left = (rounded - weight) @ mean + shift
    assert np.abs(left).max() < 0.1 * np.abs((rounded - weight) @ mean).max()


def test_moments_are_those_of_the_patches_that_a_convolution_reads() -> None:
    model = chain()
    few = images(4)
    moments = observe(model, few, moments="full").moments["depth"]
    values = np.pad(values_in_graph(model, {"images": few})["expand.act"], ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(values, (3, 3), axis=(2, 3))
    rows = windows.transpose(1, 0, 2, 3, 4, 5).reshape(8, -1, 9)
    assert moments.rows == 4 * 64
    # 64 of 100 positions were looked at.
    assert np.allclose(moments.mean, rows.mean(axis=1), atol=0.15 * rows.std())


def test_layers_with_too_many_inputs_keep_their_mean_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekd.quant.observe.MAX_INPUTS", 8)
    moments = observe(chain(), images(4), moments="full").moments
    large = {name for name, entry in moments.items() if entry.gram is None}
    assert (set(moments), large) == ({"expand", "depth", "project", "head"}, {"depth"})
    assert moments["depth"].mean.shape == (8, 9)


def test_second_moments_are_gathered_for_rounding_only_and_biases_come_out_the_same(tmp_path: Path) -> None:
    write_graph(chain(), tmp_path / "m.onnx", made_by="test")
    full = prepared_graph(tmp_path / "m.onnx", tmp_path)
    seen = {kind: observe(full, images(), moments=kind) for kind in ("mean", "full")}
    assert all(entry.gram is None for entry in seen["mean"].moments.values())
    made = cpu_form(full, reduce_range=True, attention=False).build(
        {name: range_of(found, "minmax") for name, found in seen["mean"].histograms.items()}
    )
    shifts = [refined_layers(full, made, found, rounding=False, biases="correct") for found in seen.values()]
    for layer in ("expand", "depth", "project", "head"):
        left, right = (entry[layer].shift for entry in shifts)
        assert left is not None
        assert np.array_equal(left, right)


@pytest.mark.parametrize(
    ("count", "where"),
    [(24, "8 held-out samples"), (8, "the 8 calibration samples themselves, too few to hold some out")],
)
def test_what_was_fitted_is_judged_on_other_samples_whatever_the_calibration_method(
    tmp_path: Path, count: int, where: str
) -> None:
    write_graph(chain(), tmp_path / "m.onnx", made_by="test")
    samples = Samples(images(count), None, "real")
    config = PtqConfig(calib_method="minmax")
    found = int8_builder(
        tmp_path / "m.onnx", samples, "ort-u8s8", config, scratch=tmp_path, seed=0, reporter=SilentReporter()
    )
    said = next(sentence for sentence in found.decisions if sentence.startswith("Bias correction of 4 layers"))
    assert said.endswith(f" after, on {where}.")


def test_layers_that_share_a_weight_are_named_and_left_alone() -> None:
    assert observe(shared("w"), images(4), moments="mean").without_moments == ("first", "second")


def test_a_bias_that_an_optimiser_shared_is_moved_once_for_each_layer(tmp_path: Path) -> None:
    write_graph(shared("b"), tmp_path / "m.onnx", made_by="test")
    full = prepared_graph(tmp_path / "m.onnx", tmp_path)
    view = GraphView(full)
    first, second = (view.nodes[name].input[2] for name in ("first", "second"))
    assert first != second
    assert np.array_equal(view.array(first), view.array(second))
    seen = observe(full, images(), moments="mean")
    assert seen.without_moments == ()
    made = tensorrt_form(full, attention=False).build(
        {name: range_of(found, "minmax") for name, found in seen.histograms.items()}
    )
    refined = refined_layers(full, made, seen, rounding=False, biases="correct")
    apply_refined_(made, refined)
    for layer, constant in (("first", first), ("second", second)):
        written = GraphView(made).array(GraphView(made).nodes[layer].input[2])
        shift = refined[layer].shift
        assert shift is not None
        assert np.allclose(written, view.array(constant) + shift, atol=1e-6)


def test_a_correction_of_a_bias_ends_at_the_limits_of_its_codes(tmp_path: Path) -> None:
    write_graph(chain(), tmp_path / "m.onnx", made_by="test")
    full = prepared_graph(tmp_path / "m.onnx", tmp_path)
    ranges = {name: range_of(found, "minmax") for name, found in observe(full, images()).histograms.items()}
    view = GraphView(cpu_form(full, reduce_range=False, attention=False).build(ranges))
    dequantize = view.maker[view.nodes["expand"].input[2]]
    codes = np.full_like(view.array(dequantize.input[0]), 2**31 - 10)
    codes[::2] *= -1
    view.write(dequantize.input[0], codes)
    shift = 100 * np.sign(codes) * view.array(dequantize.input[1])
    assert add_to_bias_(view, "expand", shift.astype(np.float32))
    written = view.array(dequantize.input[0])
    assert written.dtype == np.int32
    assert set(written.tolist()) == {-(2**31), 2**31 - 1}
    assert np.array_equal(np.sign(written), np.sign(codes))


@pytest.mark.parametrize("form_of", [partial(cpu_form, reduce_range=False), tensorrt_form], ids=["cpu", "tensorrt"])
def test_the_bias_behind_a_matrix_product_takes_over_its_mean_error(tmp_path: Path, form_of: Any) -> None:
    write_graph(attention(outlier=1.0), tmp_path / "m.onnx", made_by="test")
    full = prepared_graph(tmp_path / "m.onnx", tmp_path)
    seen = observe(full, images(), moments="mean")
    made = form_of(full, attention=True).build(
        {name: range_of(found, "minmax") for name, found in seen.histograms.items()}
    )
    refined = refined_layers(full, made, seen, rounding=False, biases="correct")
    before, plain = onnx.ModelProto(), GraphView(full)
    before.CopyFrom(made)
    apply_refined_(made, refined)
    normed = values_in_graph(full, {"images": images()})[plain.nodes["query"].input[0]]
    mean = normed.reshape(-1, normed.shape[-1]).mean(axis=0)
    moved = 0
    for layer in ("query", "key", "value"):
        weight = quantized_weight_of(GraphView(made), layer)
        assert weight is not None
        error = mean @ (weight.values - plain.array(plain.nodes[layer].input[1]))
        shift = refined[layer].shift
        assert shift is not None
        assert np.abs(error + shift).max() < 0.1 * np.abs(error).max()
        old, new = (_bias(GraphView(model), layer) for model in (before, made))
        assert np.allclose(new, old + shift, atol=1e-6)
        moved += not np.allclose(new, old)
    assert moved == 3
    assert refined["head"].shift is None, "the head has no bias"


def _bias(view: GraphView, layer: str) -> np.ndarray:
    place = bias_place(view, layer)
    assert place is not None
    return view.array(place[0].input[place[1]])


def test_what_is_no_bias_of_a_matrix_product_is_not_taken_for_one() -> None:
    view = GraphView(attention())
    assert bias_place(view, "scores") is None, "its product goes into a Softmax"
    assert bias_place(view, "mixed") is None, "what is added to it is no constant"
    assert bias_place(view, "head") is None, "nothing is added"
    place = bias_place(view, "query")
    assert place is not None
    assert (place[0].name, place[1]) == ("query.bias", 1)


def shared(kind: str) -> onnx.ModelProto:
    """Two 1x1 convolutions in a row that read the same weight (`w`) or the same bias (`b`)."""
    rng = np.random.default_rng(3)
    sizes = {"first.w": (3, 3, 1, 1), "second.w": (3, 3, 1, 1), "first.b": (3,), "second.b": (3,)}
    sizes.pop(f"second.{kind}")
    constants = [numpy_helper.from_array(rng.standard_normal(size).astype(np.float32), n) for n, size in sizes.items()]
    node, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    reads = {
        k: [f"{layer}.{k}" if f"{layer}.{k}" in sizes else f"first.{k}" for layer in ("first", "second")] for k in "wb"
    }
    graph = onnx.helper.make_graph(
        [
            node("Conv", ["images", reads["w"][0], reads["b"][0]], ["a"], "first"),
            node("Relu", ["a"], ["r"], "relu"),
            node("Conv", ["r", reads["w"][1], reads["b"][1]], ["c"], "second"),
            node("GlobalAveragePool", ["c"], ["p"], "pool"),
            node("Flatten", ["p"], ["logits"], "flat"),
        ],
        "shared",
        [info("images", onnx.TensorProto.FLOAT, ["N", 3, 10, 10])],
        [info("logits", onnx.TensorProto.FLOAT, ["N", 3])],
        constants,
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    return onnx.shape_inference.infer_shapes(model)


def test_an_empty_calibration_set_is_refused() -> None:
    with pytest.raises(UserError, match="There are no calibration samples, so no activation ranges can be found"):
        observe(chain(), images(4)[:0])
