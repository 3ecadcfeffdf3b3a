"""Latency without the device: a roofline fitted to timings or taken from a card, and transfer from other devices.

from edgekd.profiling.predict import choose_samples, fit

indices = choose_samples(archs, reference_latencies, 10)         # measure these on the new device
predictor = fit(archs, reference_latencies, {index: measured_ms[index] for index in indices})
median_ms, low_ms, high_ms = predictor.predict(archs)            # 90 % intervals
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekd.profiling.predict.choice import choose_samples, next_sample
    from edgekd.profiling.predict.population import Population, learn
    from edgekd.profiling.predict.transfer import LatencyPredictor, fit

__all__ = ["LatencyPredictor", "Population", "choose_samples", "fit", "learn", "next_sample"]

_HOMES = {
    "LatencyPredictor": "transfer",
    "Population": "population",
    "choose_samples": "choice",
    "fit": "transfer",
    "learn": "population",
    "next_sample": "choice",
}


def __getattr__(name: str) -> Any:
    """A public name, imported when it is asked for: they need scipy."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"edgekd.profiling.predict.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
