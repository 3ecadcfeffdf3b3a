from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgekd.core.bundle import BundleKind
from edgekd.data.dataset import ArrayImages, Split
from edgekd.quant import calibration_stage
from edgekd.quant.calibration_stage import (
    CalibrationConfig,
    CalibrationStage,
    SyntheticSamplesConfig,
    SyntheticSamplesStage,
)
from edgekd.quant.calibrators import parts_of
from edgekd.runtimes.samples import samples_from_bundle
from edgekd.testing.harness import make_context, make_inputs, run_stage
from edgekd.testing.toy_data import toy_dataset
from edgekd.testing.toy_graphs import toy_onnx_bundle
from edgekd.testing.toys import toy_bundle, toy_recipe


def test_calibration_draws_labelled_samples_of_the_training_split(tmp_path: Path) -> None:
    dataset = toy_dataset()
    ctx = make_context(tmp_path, resources={"data": dataset})
    model = toy_bundle(ctx.blobs, ctx.scratch)
    result = run_stage(CalibrationStage(CalibrationConfig(samples=12)), make_inputs(model=model), ctx)
    samples = samples_from_bundle(result.bundle, ctx.blobs, preprocessing=model.model.preprocessing)
    assert result.bundle.kind is BundleKind.DATA
    assert samples.images.shape == (12, 3, 8, 8)
    assert samples.labels is not None
    assert np.bincount(samples.labels).tolist() == [3, 3, 3, 3]
    assert samples.origin == "real"
    assert result.bundle.tags["source"] in result.decisions[0]


def test_the_same_seed_draws_the_same_samples_and_another_seed_others(tmp_path: Path) -> None:
    dataset = toy_dataset()
    found = []
    for place, seed in enumerate((0, 0, 1)):
        ctx = make_context(tmp_path / str(place), resources={"data": dataset}, seed=seed)
        model = toy_bundle(ctx.blobs, ctx.scratch)
        stage = CalibrationStage(CalibrationConfig(samples=8))
        found.append(run_stage(stage, make_inputs(model=model), ctx).bundle.files)
    assert found[0] == found[1] != found[2]


def test_synthetic_samples_say_what_they_are_and_how_far_to_trust_them(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    model = toy_bundle(ctx.blobs, ctx.scratch)
    stage = SyntheticSamplesStage(SyntheticSamplesConfig(samples=4, steps=3))
    result = run_stage(stage, make_inputs(model=model), ctx)
    samples = samples_from_bundle(result.bundle, ctx.blobs, preprocessing=model.model.preprocessing)
    assert samples.images.shape == (4, 3, 8, 8)
    assert samples.origin == "synthetic"
    assert result.bundle.tags["origin"] == "synthetic"
    overlap = result.metrics["range_overlap"]
    assert isinstance(overlap, float)
    assert 0 <= overlap <= 1
    assert "nothing measured on them stands for accuracy" in result.decisions[0]


def test_coverage_takes_the_rare_kind_of_image_among_few_samples(tmp_path: Path) -> None:
    usual = toy_dataset(n=400)
    rows = np.arange(len(usual.train))
    pixels = usual.train.images(rows, toy_recipe().preprocessing)
    rare = rows[::40]  # overexposed: one image in forty
    pixels[rare] = 255 - pixels[rare] // 8
    dataset = replace(usual, train=Split(ArrayImages(pixels), rows, usual.train.labels))
    ctx = make_context(tmp_path, resources={"data": dataset})
    model = toy_bundle(ctx.blobs, ctx.scratch)
    found = {}
    for method in ("stratified", "coverage"):
        config = CalibrationConfig.parse({"samples": 12, "method": method}, "test")
        result = run_stage(CalibrationStage(config), make_inputs(model=model), ctx)
        samples = samples_from_bundle(result.bundle, ctx.blobs, preprocessing=model.model.preprocessing)
        found[method] = int((samples.images.mean(axis=(1, 2, 3)) > 0.5).sum())
        assert len(samples.images) == 12
    assert found == {"stratified": 0, "coverage": found["coverage"]}
    assert found["coverage"] >= 1  # they are alike, so one of them covers all
    assert result.decisions[0].endswith("chosen to cover the model's features of 320 of them.")
    again = run_stage(CalibrationStage(config), make_inputs(model=model), ctx)
    assert again.bundle.files == result.bundle.files


def test_coverage_spreads_the_unusual_images_over_its_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = toy_dataset(n=250)
    rows = np.arange(len(usual.train))
    shape = usual.train.images(rows, toy_recipe().preprocessing).shape
    pixels = np.broadcast_to(rows.astype(np.uint8)[:, None, None, None], shape)  # an image's brightness is its row
    unusual = rows[-12:]

    def points(_model: object, split: Split, _ctx: object) -> tuple[np.ndarray, str]:
        at = split.images(np.arange(len(split)), toy_recipe().preprocessing)[:, 0, 0, 0].astype(float)
        return np.where(at >= unusual[0], at * 100, at)[:, None], "features"

    monkeypatch.setattr(calibration_stage, "embeddings", points)
    dataset = replace(usual, train=Split(ArrayImages(pixels), rows, usual.train.labels))
    ctx = make_context(tmp_path, resources={"data": dataset})
    model = toy_bundle(ctx.blobs, ctx.scratch)
    config = CalibrationConfig(samples=30, method="coverage")
    result = run_stage(CalibrationStage(config), make_inputs(model=model), ctx)
    images = samples_from_bundle(result.bundle, ctx.blobs, preprocessing=model.model.preprocessing).images
    brightness = images.mean(axis=(1, 2, 3))
    among = np.argsort(np.argsort(brightness)) >= 30 - len(unusual)  # the brightest are the unusual ones
    judged = among[parts_of(30, hold_out=True).compared]
    assert 2 <= judged.sum() <= 7


def test_coverage_of_a_graph_goes_by_its_logits(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, resources={"data": toy_dataset()})
    graph = toy_onnx_bundle(ctx.blobs, ctx.scratch)
    config = CalibrationConfig.parse({"samples": 1000, "method": "coverage"}, "test")
    result = run_stage(CalibrationStage(config), make_inputs(model=graph), ctx)
    assert (
        "48 of 48 training images of toy (1000 were asked for), chosen to cover the model's logits"
        in (result.decisions[0])
    )
