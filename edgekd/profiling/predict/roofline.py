"""Fits the roofline of `edgekd.targets.latency` to timings, and says how wrong it is on networks it has not seen.

Under a roofline an operation is bound by compute or by memory. Once each one is assigned to a side, the latency is
linear in (fixed, overhead, 1/rate per kind, 1/bandwidth), so non-negative least squares fits it (Lawson and Hanson,
Solving Least Squares Problems, 1974); assigning and fitting alternate until nothing moves. Residuals are relative: a
fast network counts as much as a slow one. What the timings do not determine stays as the prior has it.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from scipy.optimize import nnls

from edgekd.core.cost import OpCost, OpKind
from edgekd.targets.latency import LatencyModel
from edgekd.targets.schema import Precision

_ALTERNATIONS = 8
_EXTREMES = (1e-3, 1e3)
"""Factors of the prior's bandwidth at which every operation is bound by memory, or by compute."""
_RATED: tuple[OpKind, ...] = ("conv", "depthwise", "linear")
_BYTES = 4
_RATES = np.geomspace(0.25, 16.0, 97)
"""INT8 rates that are tried, as multiples of the FP32 one."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One network's cost and its measured median latency."""

    costs: tuple[OpCost, ...]
    precision: Precision
    p50_ms: float


def fitted_model(timings: Sequence[Timing], prior: LatencyModel) -> LatencyModel:
    """The roofline that fits the timings best, with its median relative error on timings left out one at a time.

    Args:
        timings: FP32 ones, and INT8 ones where there are any; FP16 is not timed and keeps the prior's ratio to FP32.
        prior: Stands in for what the timings do not determine.
    """
    model = _fit(timings, prior)
    errors = []
    for index, left_out in enumerate(timings):
        others = _fit([*timings[:index], *timings[index + 1 :]], prior)
        errors.append(abs(others.predict_ms(left_out.costs, left_out.precision) / left_out.p50_ms - 1))
    return model.model_copy(update={"relative_error": statistics.median(errors)})


def _fit(timings: Sequence[Timing], prior: LatencyModel) -> LatencyModel:
    """The best model that the alternation visits; it starts from the prior and from both extremes of bandwidth."""
    full = [timing for timing in timings if timing.precision == "fp32"]
    weights = 1.0 / np.array([timing.p50_ms for timing in full])
    start = _with_coefficients(prior, None)
    visited = []
    for bandwidth in (1.0, *_EXTREMES):
        model = start.model_copy(update={"bandwidth_gb_s": bandwidth * start.bandwidth_gb_s})
        for _ in range(_ALTERNATIONS):
            table = np.array([_features(timing.costs, model) for timing in full])
            found, _ = nnls(table * weights[:, None], np.ones(len(full)))
            after = _with_coefficients(prior, found)
            if after == model:
                break
            model = after
            visited.append(model)
    best = min(visited, key=lambda model: _error(model, full))
    whole = [timing for timing in timings if timing.precision == "int8"]
    return _with_int8(best, whole) if whole else best


def _error(model: LatencyModel, timings: Sequence[Timing]) -> float:
    """Mean relative error of a model's predictions."""
    return statistics.fmean(abs(model.predict_ms(t.costs, t.precision) / t.p50_ms - 1) for t in timings)


def _features(costs: Sequence[OpCost], model: LatencyModel) -> list[float]:
    """What each coefficient is multiplied with: 1, operations, MACs per kind where compute binds, bytes elsewhere."""
    macs = dict.fromkeys(_RATED, 0.0)
    moved, operations = 0.0, 0
    for cost in costs:
        if cost.fused:
            continue
        operations += 1
        rate = model.gmacs_per_s["fp32"] * model.efficiency.get(cost.kind, model.efficiency["other"])
        memory = _BYTES * (cost.activations + cost.params)
        if cost.kind in macs and cost.macs / rate >= memory / model.bandwidth_gb_s:
            macs[cost.kind] += cost.macs / 1e6
        else:
            moved += memory / 1e6
    return [1.0, float(operations), *macs.values(), moved]


def _with_coefficients(prior: LatencyModel, found: np.ndarray | None) -> LatencyModel:
    """The model of fitted coefficients (ms per feature); a rate or bandwidth of zero coefficient stays the prior's."""
    rates = {kind: prior.gmacs_per_s["fp32"] * prior.efficiency.get(kind, prior.efficiency["other"]) for kind in _RATED}
    fixed_ms, overhead_ms, bandwidth = prior.fixed_us / 1e3, prior.overhead_us_per_op / 1e3, prior.bandwidth_gb_s
    if found is not None:
        fixed_ms, overhead_ms, *inverse, inverse_bandwidth = (float(value) for value in found)
        rates = {kind: 1 / value if value > 0 else rates[kind] for kind, value in zip(_RATED, inverse, strict=True)}
        bandwidth = 1 / inverse_bandwidth if inverse_bandwidth > 0 else bandwidth
    peak = max(rates.values())
    ratios = {name: rate / prior.gmacs_per_s["fp32"] for name, rate in prior.gmacs_per_s.items()}
    efficiency = cast(dict[OpKind, float], {kind: rate / peak for kind, rate in rates.items()})
    return prior.model_copy(
        update={
            "fixed_us": fixed_ms * 1e3,
            "overhead_us_per_op": overhead_ms * 1e3,
            "gmacs_per_s": {name: peak * ratio for name, ratio in ratios.items()},
            "efficiency": {**efficiency, "other": efficiency["conv"]},
            "bandwidth_gb_s": bandwidth,
            "origin": "fitted",
            "relative_error": None,
        }
    )


def _with_int8(model: LatencyModel, timings: Sequence[Timing]) -> LatencyModel:
    """The model with the INT8 rate that predicts the INT8 timings with the least mean relative error."""

    def at(rate: float) -> LatencyModel:
        rates = {**model.gmacs_per_s, "int8": model.gmacs_per_s["fp32"] * rate}
        return model.model_copy(update={"gmacs_per_s": rates})

    return min((at(float(rate)) for rate in _RATES), key=lambda candidate: _error(candidate, timings))
