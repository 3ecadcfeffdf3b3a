"""Rounding that minimises the output error, and biases that take over the mean, against exhaustive search and numpy."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgekd.errors import UserError
from edgekd.quant.layers import GraphView, quantized_weight_of
from edgekd.quant.observe import MAX_INPUTS, observe
from edgekd.quant.onnxruntime import cpu_form, prepared_graph, tensorrt_form
from edgekd.quant.ranges import range_of
from edgekd.quant.reconstruct import apply_refined_, descended, refined_layers
from edgekd.runtimes.onnx_file import write_graph
from edgekd.runtimes.onnxruntime import values_in_graph
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
    seen = observe(full, images(), moments=True)
    made = form.build({name: range_of(found, "minmax") for name, found in seen.histograms.items()})
    refined = refined_layers(full, made, seen, rounding=True, biases="correct")
    assert set(refined) == {"expand", "depth", "project", "head"}
    assert all(entry.error_after < entry.error_before for entry in refined.values())
    apply_refined_(made, refined)
    onnx.checker.check_model(made, full_check=True)
    for layer, entry in refined.items():
        weight = quantized_weight_of(GraphView(made), layer)
        assert weight is not None
        assert np.array_equal(weight.codes, entry.codes)


def test_bias_correction_leaves_no_mean_error_in_a_layer() -> None:
    model = chain()
    seen = observe(model, images(), moments=True)
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
    moments = observe(model, few, moments=True).moments["depth"]
    values = np.pad(values_in_graph(model, {"images": few})["expand.act"], ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(values, (3, 3), axis=(2, 3))
    rows = windows.transpose(1, 0, 2, 3, 4, 5).reshape(8, -1, 9)
    assert moments.rows == 4 * 64
    # 64 of 100 positions were looked at.
    assert np.allclose(moments.mean, rows.mean(axis=1), atol=0.15 * rows.std())


def test_layers_with_too_many_inputs_are_named_and_left_alone() -> None:
    model = chain()
    wide = np.zeros((5, MAX_INPUTS + 1), np.float32)
    view = GraphView(model)
    view.constants["head.w"].CopyFrom(numpy_helper.from_array(wide, "head.w"))
    model.graph.node[-1].input[0] = "wide"
    model.graph.initializer.append(numpy_helper.from_array(np.ones((1, MAX_INPUTS + 1), np.float32), "wide"))
    assert observe(model, images(4), moments=True).without_moments == ("head",)


def test_an_empty_calibration_set_is_refused() -> None:
    with pytest.raises(UserError, match="There are no calibration samples, so no activation ranges can be found"):
        observe(chain(), images(4)[:0])
