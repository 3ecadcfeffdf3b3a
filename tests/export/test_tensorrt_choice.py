"""The fastest engine that computes what its graph does, and the reasons against the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd.core.bundle import ModelBundle
from edgekd.errors import BuildFailed
from edgekd.export.tensorrt_choice import TOLERANCES, chosen_build, reference_outputs, tolerance_for
from edgekd.quant.ptq_stage import QuantizeConfig, QuantizeStage
from edgekd.runtimes.onnx_file import MODEL_FILE
from edgekd.runtimes.onnxruntime import RUNTIME, emulated
from edgekd.runtimes.samples import Samples, bundle_from_samples, random_images
from edgekd.testing.harness import make_context, make_inputs, run_stage
from edgekd.testing.toy_graphs import toy_onnx_bundle


@pytest.fixture
def judged(tmp_path: Path) -> tuple[ModelBundle, list[Any]]:
    ctx = make_context(tmp_path)
    model = toy_onnx_bundle(ctx.blobs, ctx.scratch)
    images = random_images((3, 8, 8), samples=2, seed=0)
    return model, reference_outputs(ctx.path(model, MODEL_FILE), images)


def build(reference: list[Any], ms: float | None, error: float = 0.0, failure: str | None = None) -> dict[str, Any]:
    outputs = [{"logits": (found["logits"].ravel() + error).tolist()} for found in reference]
    return {"outputs": outputs, "median_ms": ms, "failure": failure}


def test_the_fastest_of_those_that_pass_is_kept(judged: tuple[ModelBundle, list[Any]]) -> None:
    model, reference = judged
    builds = [build(reference, 2.0), build(reference, 0.5, error=9.0), build(reference, 1.0), build(reference, None)]
    choice = chosen_build(builds, reference, TOLERANCES["fp32"], model)
    assert choice.number == 2
    assert choice.decisions[0].startswith("Build 2 is not kept: its output 'logits' differs by up to 9")
    assert "Of 3 engines that pass parity (2.000 ms, 1.000 ms, not timed GPU compute time)" in choice.decisions[1]


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ([{"logits": [float("nan")] * 4}] * 2, "its output 'logits' is not finite for image 1"),
        ([{"logits": [0.0] * 3}] * 2, "has 3 values, the graph's has 4"),
        ([{"other": [0.0] * 4}] * 2, "has 0 values"),
        ([], "it gave outputs for 0 of 2 images"),
    ],
)
def test_outputs_that_cannot_be_compared_are_a_reason(
    judged: tuple[ModelBundle, list[Any]], outputs: list[Any], message: str
) -> None:
    model, reference = judged
    with pytest.raises(BuildFailed, match=message):
        chosen_build([{"outputs": outputs, "median_ms": 1.0, "failure": None}], reference, TOLERANCES["int8"], model)


def test_the_reference_rounds_where_the_graph_says_and_not_in_kernels_of_this_cpu(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    full = toy_onnx_bundle(ctx.blobs, ctx.scratch)
    samples = bundle_from_samples(
        Samples(random_images((3, 8, 8), samples=32, seed=0), None, "real"),
        preprocessing=full.model.preprocessing,
        source="a test",
        blobs=ctx.blobs,
        scratch=ctx.scratch,
    )
    stage = QuantizeStage(QuantizeConfig(scheme="tensorrt-s8", calib_method="minmax"))
    model = run_stage(stage, make_inputs(model=full, calibration=samples), ctx).bundle
    graph = ctx.path(model, MODEL_FILE)
    images = random_images((3, 8, 8), samples=2, seed=1)
    found = [outputs["logits"] for outputs in reference_outputs(graph, images)]
    with emulated(graph) as exact, RUNTIME.open(graph) as kernels:
        wanted = [exact.infer({"images": images[n : n + 1]})["logits"] for n in range(2)]
        others = [kernels.infer({"images": images[n : n + 1]})["logits"] for n in range(2)]
    assert all(map(np.array_equal, found, wanted))
    assert not any(map(np.array_equal, found, others))  # so that the line above can tell the two apart


def test_when_none_passes_the_reason_of_the_first_is_told(judged: tuple[ModelBundle, list[Any]]) -> None:
    model, reference = judged
    builds = [build(reference, 1.0, failure="it was built and does not run: no memory"), build(reference, 1.0, 9.0)]
    with pytest.raises(BuildFailed, match=r"Not one of 2 engine.* it was built and does not run: no memory") as caught:
        chosen_build(builds, reference, TOLERANCES["fp32"], model)
    assert caught.value.exit_code == 4


def test_tolerances_widen_with_the_precision_and_can_be_set() -> None:
    assert TOLERANCES["fp32"].atol < TOLERANCES["fp16"].atol < TOLERANCES["int8"].atol
    assert tolerance_for("int8", 0.01, None).atol == 0.01
    assert tolerance_for("int8", 0.01, None).rtol == TOLERANCES["int8"].rtol
    values = np.linspace(-1, 1, 9, dtype=np.float32)
    assert not tolerance_for("fp32", 0.0, 0.0).holds(values, values + np.float32(1e-3))
