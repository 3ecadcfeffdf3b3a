"""How wide an interval must be to hold what it claims, learnt on the reference devices and on the measurements.

The model's standard deviation orders networks by how unsure it is; how many of them an interval needs is not taken
from a normal distribution. Each reference device is predicted from the same networks as the new one, and the distances
of its other latencies show how many it would have needed. What tells devices apart beforehand, the size of the model's
own deviations and the left-out distances of the measurements, is regressed on; with few measurements the regression
finds little in the latter and stays with the other devices, with many it follows the device's own. Every reference
device is judged by what the others teach, as the new one will be, so that the intervals of new devices hold `level` of
their latencies on average over devices (jackknife+, Barber et al. 2021, arXiv 1905.02928, with devices as the points).
The guarantee of hierarchical conformal prediction (Dunn et al. 2022, arXiv 1809.07441) needs the latencies of a device
not seen yet to lie beyond all others; half of them are put there, since the aim is the level, not a lower bound on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import erfinv

from edgekd.profiling.predict.archs import Floats, Ints
from edgekd.profiling.predict.basis import Basis
from edgekd.profiling.predict.mixture import Mixture, mixture
from edgekd.profiling.predict.population import Population, observed_on, treated_as_new

_CHECK_ON = 400
_MOST_CASES = 32
_FEWEST = 3
"""Fewer measurements say nothing of their own spread, fewer reference devices nothing of devices."""
_OWN = 8
"""Before any reference device speaks, with so many measurements their left-out distances count an eighth."""
_RIDGE = 3.0
_STEEPEST = 0.5
"""A device whose deviations seem e times smaller may need this much more in the logarithm, not more."""

_TINY = 1e-3
"""Added to distances before a logarithm: where latencies repeat exactly they are zero."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One device, predicted from few measurements.

    Attributes:
        device: Index among the reference devices, -1 for the new one.
        distances: (N,) of latencies from what is predicted, in standard deviations; empty for the new device.
        log_spread: Logarithm of the model's median standard deviation, relative to the latency.
        left_out: (n,) distances of the measurements from what the others of them predict; empty where too few.
    """

    device: int
    distances: Floats
    log_spread: float
    left_out: Floats


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What makes intervals hold what they claim.

    Attributes:
        own: The new device.
        others: Reference devices in its place.
    """

    own: Case
    others: tuple[Case, ...]

    def width(self, level: float) -> float:
        """How many standard deviations hold a share `level` of networks."""
        start = np.array([0.0, (len(self.own.left_out) / (len(self.own.left_out) + _OWN)) ** 3])
        here = _features(self.own, level)
        if len(self.others) < _FEWEST:
            distances = np.concatenate([case.distances for case in self.others] or [_normal_distances()])
            needed = float(np.log(np.quantile(distances, level)))
            left_out = here[1] if len(self.own.left_out) else needed
            return float(np.exp(needed + start[1] * (left_out - needed)))
        known = np.array([_features(case, level) for case in self.others])
        needs = np.array([np.log(np.quantile(case.distances, level) + _TINY) for case in self.others])
        judged = []
        for index, case in enumerate(self.others):
            rest = np.arange(len(needs)) != index
            expected = _Line.through(known[rest], needs[rest], start).at(known[index])
            judged.append(case.distances / np.exp(expected))
        # Cases weigh the same, however many latencies they have.
        weights = np.concatenate([np.full(len(part), 1 / len(part)) for part in judged])
        expected = _Line.through(known, needs, start).at(here)
        # The new device is one more: half of its latencies are taken to lie beyond all that these cases show.
        devices = len({case.device for case in self.others})
        lifted = min(1.0, level + (level - 0.5) / devices)
        return float(np.exp(expected)) * _weighted_quantile(np.concatenate(judged), weights, lifted)


@dataclass(frozen=True, kw_only=True)
class _Line:
    """log width = height + slope * (features - middle)."""

    middle: Floats
    height: float
    slope: Floats

    @classmethod
    def through(cls, features: Floats, needs: Floats, start: Floats) -> _Line:
        """The ridge regression whose slope is drawn to `start` and kept to what can be: no wider for surer models."""
        middle, height = features.mean(axis=0), float(needs.mean())
        away, left = features - middle, needs - height
        square = away.T @ away + _RIDGE * np.eye(2)
        slope = start + np.linalg.solve(square, away.T @ (left - away @ start))
        slope[1] = np.clip(slope[1], 0.0, 1.0)
        slope[0] = away[:, 0] @ (left - away[:, 1] * slope[1]) / square[0, 0]
        slope[0] = np.clip(slope[0], -_STEEPEST, 0.0)
        return cls(middle=middle, height=height, slope=slope)

    def at(self, features: Floats) -> float:
        return self.height + float(self.slope @ (features - self.middle))


def calibration_from(population: Population, rows: Ints, own: Mixture, step: float) -> Calibration:
    """The calibration for a device measured at `rows`, whose mixture is `own`.

    Args:
        step: Rounding of the measurements as a share of the device's scale, 0 where none shows.
    """
    cases = []
    for device, basis in _places(population):
        case = _as_new(population, device, basis, rows)
        if case is not None:
            cases.append(case)
    some = np.random.default_rng(population.seed).permutation(len(population.archs))[:_CHECK_ON]
    base, blocks = population.basis.of_rows(some)
    value, spread = own.predict(blocks, (step / base) ** 2 / 12)
    here = Case(device=-1, distances=np.zeros(0), log_spread=_log_spread(value, spread), left_out=_left_out(own))
    return Calibration(own=here, others=tuple(cases))


def _places(population: Population) -> list[tuple[int, Basis]]:
    """Reference devices that take the part of a new one, seen from all others and from those unlike it."""
    found = []
    for siblings in (True, False):
        for device in treated_as_new(population.tables, population.seed):
            basis = population.others[device, siblings]
            if siblings or basis is not population.others[device, True]:
                found.append((device, basis))
    return found[:_MOST_CASES]


def _as_new(population: Population, index: int, basis: Basis, rows: Ints) -> Case | None:
    """A reference device predicted as if it were the new one; None where it has too few of the measurements."""
    device = population.tables[index].device
    place = np.full(len(population.archs), -1)
    place[device.rows] = np.arange(len(device.rows))
    seen = rows[place[rows] >= 0]
    others = np.setdiff1d(device.rows, seen)
    settings = population.settings[population.origins != index]
    if len(seen) < min(_FEWEST, len(rows)) or not len(settings) or not len(others):
        return None
    observed, scale = observed_on(basis, seen, device.ms[place[seen]], device.step_ms)
    chosen = np.random.default_rng(population.seed).permutation(others)[:_CHECK_ON]
    base, blocks = basis.of_rows(chosen)
    fitted = mixture(settings, observed)
    value, spread = fitted.predict(blocks, (device.step_ms / (scale * base)) ** 2 / 12)
    return Case(
        device=index,
        distances=np.abs(device.ms[place[chosen]] / (scale * base) - value) / spread,
        log_spread=_log_spread(value, spread),
        left_out=_left_out(fitted),
    )


def _left_out(fitted: Mixture) -> Floats:
    return fitted.left_out_scores() if len(fitted.observed.values) >= _FEWEST else np.zeros(0)


def _log_spread(value: Floats, spread: Floats) -> float:
    return float(np.log(np.median(spread / value)))


def _features(case: Case, level: float) -> Floats:
    """(2,) what is known of a device before its other latencies are."""
    count = len(case.left_out)
    if not count:
        return np.array([case.log_spread, 0.0])
    # The mean of neighbouring quantiles, each with the finite-sample factor, is steadier than one of them.
    levels: Sequence[float] = (max(level - 0.05, level / 2), level, (1 + level) / 2)
    quantiles = np.quantile(case.left_out, [min(1.0, at * (count + 1) / count) for at in levels])
    return np.array([case.log_spread, float(np.mean(np.log(quantiles + _TINY)))])


def _normal_distances() -> Floats:
    return np.asarray(np.sqrt(2) * erfinv(np.linspace(0.005, 0.995, 100)))


def _weighted_quantile(values: Floats, weights: Floats, level: float) -> float:
    order = np.argsort(values)
    reached = int(np.searchsorted(np.cumsum(weights[order]), level * weights.sum()))
    return float(values[order][min(reached, len(values) - 1)])
