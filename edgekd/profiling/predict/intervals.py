"""How wide an interval must be to hold what it claims, found out on the reference devices and on the measurements.

The model's standard deviation orders networks by how unsure it is; how many of them an interval needs is not taken
from a normal distribution. Each reference device is predicted from the same networks as the new one and the distances
of its other latencies are kept: devices stand for devices (split conformal prediction, Vovk et al. 2005, with devices
as the calibration set). The new device's own left-out distances join them, and gain weight with their number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import erfinv

from edgekd.profiling.predict.archs import Floats, Ints
from edgekd.profiling.predict.mixture import Mixture, mixture
from edgekd.profiling.predict.population import Population, observed_on, treated_as_new

_CHECK_ON = 400
_DEVICES_COUNT_AS = 20.0
"""The reference devices together weigh as much as so many measurements of the new one."""
_OWN_HALF = 30
"""With so many measurements a left-out distance counts half, with few less: the model was chosen with it in sight."""
_FEWEST = 3


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Distances in standard deviations, each with a weight.

    Attributes:
        scores: In ascending order.
        weights: Adding up to less than one: the rest is a distance beyond all seen.
    """

    scores: Floats
    weights: Floats

    def width(self, level: float) -> float:
        """How many standard deviations hold a share `level` of networks."""
        reached = int(np.searchsorted(np.cumsum(self.weights), level))
        return float(self.scores[min(reached, len(self.scores) - 1)])


def calibration_from(population: Population, rows: Ints, own: Mixture) -> Calibration:
    """The calibration for a device measured at `rows`, whose mixture is `own`."""
    groups = []
    for place, device in enumerate(treated_as_new(population.tables, population.seed)):
        scores = _scores_as_new(population, device, rows, siblings=place % 2 == 0)
        if len(scores):
            groups.append(scores)
    if not groups:
        groups = [np.sqrt(2) * erfinv(np.linspace(0.005, 0.995, 100))]  # |z| of a normal distribution
    left_out = own.left_out_scores() if len(rows) >= _FEWEST else np.zeros(0)
    trust = len(rows) / (len(rows) + _OWN_HALF)
    shares = [np.full(len(group), _DEVICES_COUNT_AS / len(groups) / len(group)) for group in groups]
    scores = np.concatenate([*groups, left_out])
    weights = np.concatenate([*shares, np.full(len(left_out), trust)])
    order = np.argsort(scores)
    # One more that is beyond all: the finite-sample correction.
    return Calibration(scores=scores[order], weights=weights[order] / (weights.sum() + 1))


def _scores_as_new(population: Population, index: int, rows: Ints, *, siblings: bool) -> Floats:
    """Distances of a reference device's latencies from what is predicted for it as if it were the new one."""
    device = population.tables[index].device
    place = np.full(len(population.archs), -1)
    place[device.rows] = np.arange(len(device.rows))
    seen = rows[place[rows] >= 0]
    settings = population.settings[population.origins != index]
    if len(seen) < _FEWEST or not len(settings):
        return np.zeros(0)
    basis = population.others[index, siblings]
    observed, scale = observed_on(basis, seen, device.ms[place[seen]], device.step_ms)
    others = np.setdiff1d(device.rows, seen)
    chosen = np.random.default_rng(population.seed).permutation(others)[:_CHECK_ON]
    base, blocks = basis.of_rows(chosen)
    value, spread = mixture(settings, observed).predict(blocks, (device.step_ms / (scale * base)) ** 2 / 12)
    return np.asarray(np.abs(device.ms[place[chosen]] / (scale * base) - value) / spread)
