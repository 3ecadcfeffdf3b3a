"""Fitting the roofline: a machine that really is one must be found again."""

from __future__ import annotations

import random

import pytest

from edgekd.profiling.predict.nets import probe_nets
from edgekd.profiling.predict.roofline import Timing, fitted_model
from edgekd.targets.latency import LatencyModel

TRUTH = LatencyModel(
    target="toy",
    fixed_us=12.0,
    overhead_us_per_op=3.0,
    gmacs_per_s={"fp32": 40.0, "int8": 100.0},
    efficiency={"conv": 1.0, "depthwise": 0.25, "linear": 0.3, "other": 1.0},
    bandwidth_gb_s=30.0,
    origin="fitted",
)
PRIOR = LatencyModel(
    target="toy",
    overhead_us_per_op=10.0,
    gmacs_per_s={"fp32": 100.0, "fp16": 150.0, "int8": 200.0},
    efficiency={"conv": 0.5, "other": 0.5},
    bandwidth_gb_s=20.0,
    origin="card",
)


def timings(noise: float = 0.0) -> list[Timing]:
    rng = random.Random(0)
    nets = [*probe_nets("fp32"), *probe_nets("int8")]
    return [
        Timing(
            costs=net.costs,
            precision=net.precision,
            p50_ms=TRUTH.predict_ms(net.costs, net.precision) * (1 + rng.uniform(-noise, noise)),
        )
        for net in nets
    ]


def test_exact_timings_of_a_roofline_are_predicted_exactly() -> None:
    found = fitted_model(timings(), PRIOR)
    for timing in timings():
        assert found.predict_ms(timing.costs, timing.precision) == pytest.approx(timing.p50_ms, rel=0.03)
    assert found.gmacs_per_s["fp32"] * found.efficiency["conv"] == pytest.approx(40.0, rel=0.01)
    assert found.gmacs_per_s["fp32"] * found.efficiency["depthwise"] == pytest.approx(10.0, rel=0.01)
    assert found.gmacs_per_s["int8"] * found.efficiency["conv"] == pytest.approx(100.0, rel=0.03)
    assert found.overhead_us_per_op == pytest.approx(3.0, rel=0.01)
    assert found.bandwidth_gb_s == pytest.approx(30.0, rel=0.01)
    assert found.origin == "fitted"


def test_the_stated_error_is_that_of_networks_left_out() -> None:
    exact, noisy = fitted_model(timings(), PRIOR), fitted_model(timings(noise=0.3), PRIOR)
    assert exact.relative_error is not None
    assert noisy.relative_error is not None
    assert exact.relative_error < 0.02
    assert 0.05 < noisy.relative_error < 0.4


def test_fp16_is_not_timed_and_keeps_the_ratio_of_the_card() -> None:
    found = fitted_model(timings(), PRIOR)
    assert found.gmacs_per_s["fp16"] / found.gmacs_per_s["fp32"] == pytest.approx(1.5)


def test_what_the_timings_do_not_determine_stays_as_the_card_has_it() -> None:
    dense = [t for net, t in zip(probe_nets("fp32"), timings(), strict=False) if net.name.startswith("conv")]
    found = fitted_model(dense, PRIOR)
    assert found.gmacs_per_s["fp32"] * found.efficiency["linear"] == pytest.approx(50.0)
