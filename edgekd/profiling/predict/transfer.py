"""Latency of a device that was hardly measured, from devices that were: `fit`, and the predictor that it returns.

The model is a Gaussian process in relative latency: what a network takes on the new device is the typical latency of
the reference devices, times one plus a combination of their (denoised) latencies, of what operations and positions
cost, and of an overhead. See `basis.py` for the functions, `population.py` for how their importance is learnt.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgekd.errors import UserError
from edgekd.profiling.predict.archs import Archs, Floats, Ints, same_form
from edgekd.profiling.predict.intervals import Calibration, calibration_from
from edgekd.profiling.predict.mixture import Mixture, mixture
from edgekd.profiling.predict.observations import References, Samples, rounding_step_ms, samples_in_order
from edgekd.profiling.predict.population import Population, learn, observed_on

_LEAST_SHARE = 0.05
"""Of the median, below which no interval reaches: latencies are positive."""
_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True)
class LatencyPredictor:
    """Predicts the latency of networks on one device.

    Attributes:
        population: What is known of the networks and of other devices.
        scale_ms: Typical latency of the device.
        step_ms: Rounding of its measurements, 0 where none shows.
        measured: Number of measurements.
        fitted: Their model.
        calibration: What makes the intervals hold what they claim.
    """

    population: Population
    scale_ms: float
    step_ms: float
    measured: int
    fitted: Mixture
    calibration: Calibration

    def predict(self, archs: Archs, *, level: float = 0.9) -> tuple[Floats, Floats, Floats]:
        """(median_ms, low_ms, high_ms), each (N,): what a measurement would show, and the interval that holds it.

        Args:
            archs: Networks in the form of the fit; they need not be among those of the fit.
            level: Share of measurements that the interval is to hold, noise of the device included.

        Raises:
            UserError: Networks of another form, or a level outside (0, 1).
        """
        if not 0 < level < 1:
            raise UserError(f"level: expected a share between 0 and 1, got {level!r}.")
        table = same_form(archs, self.population.archs)
        known = {key: row for row, key in enumerate(self.population.archs.identities())}
        rows = np.array([known.get(key, -1) for key in table.identities()], dtype=np.int64)
        median, spread = np.zeros(len(table)), np.zeros(len(table))
        basis = self.population.basis
        for part in _chunks(np.flatnonzero(rows >= 0)):
            median[part], spread[part] = self._from(*basis.of_rows(rows[part]))
        for part in _chunks(np.flatnonzero(rows < 0)):
            median[part], spread[part] = self._from(*basis.of_archs(table.take(part)))
        width = self.calibration.width(level) * spread
        return median, np.maximum(median - width, _LEAST_SHARE * median), median + width

    def _from(self, base: Floats, blocks: list[Floats]) -> tuple[Floats, Floats]:
        scale = self.scale_ms * base
        value, spread = self.fitted.predict(blocks, (self.step_ms / scale) ** 2 / 12)
        return scale * value, scale * spread


def fit(
    archs: Archs,
    reference_latencies: References,
    samples: Samples,
    *,
    seed: int = 0,
    population: Population | None = None,
) -> LatencyPredictor:
    """The predictor of one device from a few measurements of it and many of other devices.

    Args:
        archs: The networks that indices refer to: NAS-Bench-201 strings, FBNet op-id strings, op-index sequences, or
            rows of features; see `arch_table`.
        reference_latencies: Of other devices in ms: (N, D), or device to N values or to network index to ms. NaN where
            not measured; None or empty where there is no other device. Devices with fewer than 8 values are ignored.
        samples: Network index to measured ms, or (indices, ms). Ten serve, fifty serve well; one gives the scale.
        seed: Of what is drawn at random; equal arguments give equal predictions.
        population: What `learn(archs, reference_latencies)` found, to fit several devices without learning it again;
            then `archs` and `reference_latencies` are not read.

    Raises:
        UserError: Arguments in no accepted form; the message names the entry.
    """
    known = learn(archs, reference_latencies, seed=seed) if population is None else population
    rows, ms = samples_in_order(samples, len(known.archs))
    step_ms = rounding_step_ms(ms)
    observed, scale = observed_on(known.basis, rows, ms, step_ms)
    fitted = mixture(known.settings, observed)
    return LatencyPredictor(
        population=known,
        scale_ms=scale,
        step_ms=step_ms,
        measured=len(rows),
        fitted=fitted,
        calibration=calibration_from(known, rows, fitted, step_ms / scale),
    )


def _chunks(rows: Ints) -> list[Ints]:
    return [rows[start : start + _AT_ONCE] for start in range(0, len(rows), _AT_ONCE)]
