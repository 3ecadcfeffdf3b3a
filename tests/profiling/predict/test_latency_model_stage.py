"""The latency-model node."""

from __future__ import annotations

from pathlib import Path

import pytest

import edgekd.profiling.predict.calibrate as calibrate_module
from edgekd.core.report_io import report_from_bundle
from edgekd.profiling.predict.nets import probe_nets
from edgekd.profiling.predict.stage import LatencyModelConfig, LatencyModelStage
from edgekd.targets.latency import LatencyModel, latency_model_from_target
from edgekd.testing.harness import make_context, make_inputs, run_stage
from tests.profiling.cards import card


def test_a_device_elsewhere_gets_the_model_of_its_card(tmp_path: Path) -> None:
    target = card(here=False)
    ctx = make_context(tmp_path, resources={"target": target})
    result = run_stage(LatencyModelStage(LatencyModelConfig()), make_inputs(), ctx)
    assert report_from_bundle(result.bundle, LatencyModel, ctx, "x") == latency_model_from_target(target)
    assert "predicted from the card of toy-board" in result.decisions[0]
    assert "30%" in result.decisions[0]


def test_the_host_gets_a_fitted_model_with_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = [net for net in probe_nets("fp32") if net.name.split("-")[0] in ("overhead", "conv16", "linear512")]
    monkeypatch.setattr(calibrate_module, "probe_nets", lambda precision: few)
    ctx = make_context(tmp_path, resources={"target": card(here=True)})
    result = run_stage(LatencyModelStage(LatencyModelConfig(duration_s=0.02)), make_inputs(), ctx)
    model = report_from_bundle(result.bundle, LatencyModel, ctx, "x")
    assert model.origin == "fitted"
    assert model.relative_error is not None
    assert "3 small networks timed in onnxruntime" in result.decisions[0]
    assert result.metrics["gmacs_per_s_fp32"] == model.gmacs_per_s["fp32"]
