"""Equalised networks compute the same, and survive one scale per weight where they did not before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgekd.core.events import SilentReporter
from edgekd.errors import BuildFailed
from edgekd.quant import ptq
from edgekd.quant.equalize import CLEAR, equalized, pairs_of, peaks_of
from edgekd.quant.layers import GraphView
from edgekd.quant.ptq import Int8Builder, PtqConfig, int8_builder
from edgekd.quant.trial import Score
from edgekd.runtimes.onnx_file import write_graph
from edgekd.runtimes.onnxruntime import values_in_graph
from edgekd.runtimes.samples import Samples
from tests.quant.chains import chain, images


def logits(model: onnx.ModelProto) -> np.ndarray:
    return values_in_graph(model, {"images": images()})["logits"]


def score(builder: Int8Builder) -> Score:
    return builder.judge.score(builder.build())


def built(folder: Path, model: onnx.ModelProto, config: PtqConfig) -> Int8Builder:
    path = folder / "model.onnx"
    write_graph(model, path, made_by="test")
    samples = Samples(images(), None, "real")
    return int8_builder(path, samples, "ort-u8s8", config, scratch=folder, seed=0, reporter=SilentReporter())


@pytest.mark.parametrize("cap", [None, 6.0, 1.0])
def test_an_equalised_network_computes_the_same(cap: float | None) -> None:
    model = chain(cap=cap, spread=100)
    made, pairs = equalized(model, peaks_of(model, images()))
    assert pairs == 2
    before = logits(model)
    assert np.abs(logits(made) - before).max() < 1e-4 * before.std()
    assert not np.array_equal(GraphView(made).array("project.w"), GraphView(model).array("project.w"))


def test_ranges_of_both_layers_of_a_pair_become_alike() -> None:
    made = GraphView(equalized(chain(spread=100), {})[0])
    first = np.abs(made.array("expand.w")).reshape(8, -1).max(axis=1)
    second = np.abs(made.array("depth.w")).reshape(8, -1).max(axis=1)
    third = np.abs(made.array("project.w")[..., 0, 0]).max(axis=0)
    assert np.allclose(first, second, rtol=0.02)
    assert np.allclose(second, third, rtol=0.02)


def test_a_channel_that_reaches_its_cap_keeps_its_scale_and_none_grows_into_it() -> None:
    model = chain(cap=1.0, spread=10)
    peaks = peaks_of(model, images())
    reached = peaks["expand.act"] >= CLEAR
    assert reached.any()
    made, _ = equalized(model, peaks)
    before, after = (GraphView(graph).array("expand.w") for graph in (model, made))
    assert np.array_equal(before[reached], after[reached])
    clear = peaks_of(made, images())["expand.act"][~reached]
    assert (clear <= CLEAR + 1e-4).all()


def scaled(model: onnx.ModelProto, name: str, channel: int, factor: float) -> None:
    """Multiplies what makes one channel, its bias aside."""
    view = GraphView(model)
    array = view.array(name).copy()
    array[channel] *= factor
    view.write(name, array)


def test_a_channel_with_weights_of_nothing_does_not_get_the_largest_bias() -> None:
    model = chain()
    scaled(model, "expand.w", 0, 1e-8)
    made, _ = equalized(model, {})
    before, after = (np.abs(GraphView(graph).array("expand.b")) for graph in (model, made))
    assert before[0] > 0.01
    assert after[0] <= before.max() * (1 + 1e-6)
    assert np.allclose(logits(made), logits(model), atol=1e-4)


def test_equalising_that_int8_does_not_gain_from_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it had lifted one channel by a factor of 10,000: FP32 computes the same, all others round to nothing."""
    lifted = chain()
    scaled(lifted, "expand.w", 0, 1e4)
    scaled(lifted, "expand.b", 0, 1e4)
    scaled(lifted, "depth.w", 0, 1e-4)
    monkeypatch.setattr(ptq, "equalized", lambda _model, _peaks: (lifted, 2))
    plain = PtqConfig(calib_method="minmax", bias_correction=False)
    found = built(tmp_path, chain(), plain.model_copy(update={"equalize": True}))
    assert np.array_equal(GraphView(found.form.full).array("expand.w"), GraphView(chain()).array("expand.w"))
    assert "it is not better, and was left out" in found.decisions[1]
    assert "on 16 held-out samples" in found.decisions[1]


def test_a_value_that_two_layers_read_is_not_scaled() -> None:
    model = chain()
    model.graph.output.append(onnx.helper.make_tensor_value_info("expand.act", onnx.TensorProto.FLOAT, None))
    assert [(pair.first, pair.second) for pair in pairs_of(GraphView(model))] == [("depth", "project")]


def test_one_scale_per_weight_collapses_and_equalising_wins_it_back(tmp_path: Path) -> None:
    plain = PtqConfig(calib_method="minmax", weight_scales="tensor", bias_correction=False, reduce_range=False)
    model = chain(spread=300)
    before = score(built(tmp_path, model, plain))
    after = built(tmp_path, model, plain.model_copy(update={"equalize": True}))
    by_channel = score(built(tmp_path, model, plain.model_copy(update={"weight_scales": "channel"})))
    assert before.sqnr_db < 20
    assert score(after).sqnr_db > before.sqnr_db + 10
    # Activations have one scale in either case: there scales per channel of the weights do not help.
    assert score(after).sqnr_db > by_channel.sqnr_db
    assert after.decisions[0].startswith("2 pairs of layers were equalised; the FP32 logits stay the same to 1")
    assert after.decisions[1].endswith("with it, on 16 held-out samples.")


def test_caps_are_not_crossed_when_other_samples_reach_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the samples to calibrate on had shown a tenth of what the held-out ones reach."""
    model = chain(cap=6.0, spread=30)
    low = {name: peak / 10 for name, peak in peaks_of(model, images()).items()}
    monkeypatch.setattr(ptq, "peaks_of", lambda _model, _images: low)
    found = built(tmp_path, model, PtqConfig(calib_method="minmax", equalize=True, bias_correction=False))
    assert found.decisions[0].startswith("Layers are not equalised across 2 caps (ReLU6): channels that stay clear")
    weights = [GraphView(graph).array("expand.w") for graph in (found.form.full, model)]
    assert np.array_equal(*weights)


def test_a_graph_without_pairs_is_left_alone_and_that_is_said(tmp_path: Path) -> None:
    model = chain()
    for name in ("expand.act", "depth.act"):
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 8, 10, 10]))
    found = built(tmp_path, model, PtqConfig(calib_method="minmax", equalize=True, bias_correction=False))
    assert found.decisions[0] == "Nothing is equalised: no two layers have only an activation function between them."


def test_an_equalised_graph_that_computes_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ptq, "equalized", lambda _model, _peaks: (chain(seed=5), 2))
    with pytest.raises(BuildFailed, match=r"Equalising 2 pairs of layers changed the FP32 logits: -?\d+ dB, expected"):
        built(tmp_path, chain(), PtqConfig(equalize=True))
