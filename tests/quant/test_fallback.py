"""The fewest layers that keep a limit, within a number of trials; and the sensitivity that orders them."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgekd.core.events import SilentReporter
from edgekd.errors import BuildFailed, UserError
from edgekd.quant.calibrators import parts_of
from edgekd.quant.fallback import fallback
from edgekd.quant.limit import Limit
from edgekd.quant.ptq import Int8Builder, PtqConfig, int8_builder
from edgekd.quant.sensitivity import SensitivityReport, sensitivity
from edgekd.quant.trial import DropType, Judge, Score
from edgekd.runtimes.onnx_file import write_graph
from edgekd.runtimes.onnxruntime import values_in_graph
from edgekd.runtimes.samples import Samples
from tests.quant.chains import chain, images

COLLAPSING = PtqConfig(calib_method="minmax", weight_scales="tensor", bias_correction=False)
"""One scale for a whole weight, on a network whose channels differ by a factor of 300."""


def losing(lost: float) -> Score:
    return Score(n=100, sqnr_db=10, agreement=0.9, top1=0.8 - lost, top1_fp32=0.8)


class Never:
    """A judge whom nobody asks."""


def limit(max_drop: float, drop_type: DropType = "absolute") -> Limit:
    judge = cast(Judge, Never())
    return Limit(judge=judge, images="calibration samples", max_drop=max_drop, drop_type=drop_type)


@pytest.mark.parametrize("needed", [0, 1, 2, 3, 5, 11, 20])
def test_the_fewest_layers_that_keep_the_limit_are_found(needed: int) -> None:
    asked: list[int] = []

    def score_of(count: int) -> Score:
        asked.append(count)
        return losing(0.0 if count >= needed else 0.05)

    found = fallback(20, score_of, limit=limit(0.01), max_trials=20)
    assert (found.count, found.held) == (needed, True)
    assert len(asked) == len(set(asked)) <= 10


def test_the_trials_bound_the_work_and_the_best_is_kept_when_none_holds() -> None:
    found = fallback(64, lambda count: losing(0.5 - count / 1000), limit=limit(0.01), max_trials=4)
    assert list(found.trials) == [0, 1, 2, 4]
    assert (found.count, found.held) == (4, False)
    assert "none of 4 trials keeps that; the best loses 49.6 points, with these layers in float: a, b, c, d." in (
        found.decision(["a", "b", "c", "d"])
    )


def test_a_drop_of_exactly_the_limit_keeps_it() -> None:
    assert fallback(4, lambda _: losing(0.01), limit=limit(0.01), max_trials=4).count == 0


def test_a_relative_drop_counts_in_shares_of_the_accuracy() -> None:
    assert fallback(4, lambda _: losing(0.08), limit=limit(0.1, "relative"), max_trials=4).held
    assert not fallback(4, lambda _: losing(0.09), limit=limit(0.1, "relative"), max_trials=4).held


def test_without_labels_answers_that_differ_count() -> None:
    assert Score(n=10, sqnr_db=1, agreement=0.7).drop() == pytest.approx(0.3)


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Int8Builder:
    folder = tmp_path_factory.mktemp("chain")
    write_graph(chain(spread=300), folder / "model.onnx", made_by="test")
    samples = Samples(images(), None, "real")
    return int8_builder(
        folder / "model.onnx", samples, "ort-u8s8", COLLAPSING, scratch=folder, seed=0, reporter=SilentReporter()
    )


@pytest.fixture(scope="module")
def report(builder: Int8Builder) -> SensitivityReport:
    return sensitivity(
        builder.form,
        builder.calibration.ranges,
        builder.judge,
        scheme="ort-u8s8",
        options=COLLAPSING,
        calib_method="minmax",
    )


def test_the_layer_whose_channels_differ_by_a_factor_of_300_is_the_most_sensitive(report: SensitivityReport) -> None:
    assert report.layers[0].layer in ("expand", "depth")
    noises = [entry.sqnr_db for entry in report.layers]
    assert noises == sorted(noises)
    assert sum(entry.noise_share for entry in report.layers) == pytest.approx(1)
    assert {entry.layer for entry in report.layers} >= {"expand", "depth", "project", "head"}


def test_a_layer_quantized_alone_is_the_only_one(builder: Int8Builder, report: SensitivityReport) -> None:
    names = {entry.layer for entry in report.layers}
    made = builder.build(names - {"head"})
    found = {entry.name for entry in made.graph.initializer if entry.name.endswith("_quantized")}
    assert {name for name in found if ".w" in name} == {"head.w_quantized"}


def test_reverting_what_the_table_says_gains_what_it_says(builder: Int8Builder, report: SensitivityReport) -> None:
    plain, better = (builder.judge.score(builder.build(floats)) for floats in ((), report.worst(2)))
    left = sum(10 ** (-entry.sqnr_db / 10) for entry in report.layers[2:])
    assert better.sqnr_db > plain.sqnr_db + 3
    assert better.sqnr_db == pytest.approx(-10 * np.log10(left), abs=3)


def test_a_graph_with_every_layer_in_float_computes_the_fp32_logits(builder: Int8Builder) -> None:
    made = builder.build([node.name for node in builder.form.full.graph.node])
    found = values_in_graph(made, {"images": images()})["logits"]
    assert np.allclose(found, builder.judge.expected, atol=1e-4)


def test_few_samples_are_not_split_and_others_by_a_third() -> None:
    assert not parts_of(11, hold_out=True).held_out
    assert not parts_of(300, hold_out=False).held_out
    parts = parts_of(300, hold_out=True)
    assert (parts.calibrated, parts.compared) == (slice(0, 200), slice(200, 300))


def with_bias(model: onnx.ModelProto, names: tuple[str, ...], value: float) -> onnx.ModelProto:
    for entry in model.graph.initializer:
        if entry.name in names:
            full = np.full(tuple(entry.dims), value, np.float32)
            entry.CopyFrom(numpy_helper.from_array(full, entry.name))
    return model


def test_samples_on_which_nothing_varies_are_refused(tmp_path: Path) -> None:
    model = with_bias(chain(), ("expand.b", "depth.b", "project.b", "head.b"), 0.0)
    write_graph(model, tmp_path / "model.onnx", made_by="test")
    black = Samples(np.zeros((16, 3, 10, 10), np.float32), None, "real")
    with pytest.raises(BuildFailed, match=r"All values of the graph are constant over the 11 calibration samples"):
        int8_builder(
            tmp_path / "model.onnx",
            black,
            "ort-u8s8",
            PtqConfig(),
            scratch=tmp_path,
            seed=0,
            reporter=SilentReporter(),
        )


def test_a_dead_layer_is_named(tmp_path: Path) -> None:
    write_graph(with_bias(chain(), ("depth.b",), -1e4), tmp_path / "model.onnx", made_by="test")
    samples = Samples(images(), None, "real")
    found = int8_builder(
        tmp_path / "model.onnx", samples, "ort-u8s8", PtqConfig(), scratch=tmp_path, seed=0, reporter=SilentReporter()
    )
    assert any(text.startswith("Constant on all 32 samples: 'depth.act'") for text in found.decisions)


def test_an_empty_set_of_samples_is_refused_by_name(tmp_path: Path) -> None:
    path, none = tmp_path / "model.onnx", Samples(np.empty((0, 3, 10, 10), np.float32), None, "real")
    write_graph(chain(), path, made_by="test")
    with pytest.raises(UserError, match="There are no calibration samples, so no activation ranges can be found"):
        int8_builder(path, none, "ort-u8s8", PtqConfig(), scratch=tmp_path, seed=0, reporter=SilentReporter())
