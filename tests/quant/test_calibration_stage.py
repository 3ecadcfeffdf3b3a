from __future__ import annotations

from pathlib import Path

import numpy as np

from edgekd.core.bundle import BundleKind
from edgekd.quant.calibration_stage import (
    CalibrationConfig,
    CalibrationStage,
    SyntheticSamplesConfig,
    SyntheticSamplesStage,
)
from edgekd.runtimes.samples import samples_from_bundle
from edgekd.testing.harness import make_context, make_inputs, run_stage
from edgekd.testing.toy_data import toy_dataset
from edgekd.testing.toys import toy_bundle


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
