"""The posteriors of all settings that a population offers, weighted by how well each explains the measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgekd.profiling.predict.archs import Floats
from edgekd.profiling.predict.gaussian import Observed, Posterior, posterior, rough_log_evidences
from edgekd.profiling.predict.population import NOISES

_TRIED_CLOSER = 24
_MOST, _LEAST_WEIGHT = 12, 0.01
_LEAST_RATIO = 0.05


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Weighted posteriors of one device.

    Attributes:
        observed: The measurements.
        parts: Those that matter.
        weights: Of the parts, adding up to one.
    """

    observed: Observed
    parts: tuple[Posterior, ...]
    weights: Floats

    def predict(self, blocks: Sequence[Floats], rounding: Floats) -> tuple[Floats, Floats]:
        """(N,) relative latency and its standard deviation as a measurement would show it."""
        found = [part.predict(self.observed, blocks) for part in self.parts]
        means = np.array([mean for mean, _ in found])
        mean = self.weights @ means
        unsure = self.weights @ (np.array([left for _, left in found]) + (means - mean) ** 2)
        noise = float(self.weights @ np.array([part.noise * part.inflation for part in self.parts]))
        return np.maximum(1 + mean, _LEAST_RATIO), np.sqrt(unsure + noise + rounding)

    def left_out_scores(self) -> Floats:
        """(n,) distance of each measurement from what the others predict, in standard deviations."""
        found = [part.left_out(self.observed) for part in self.parts]
        means = np.array([mean for mean, _ in found])
        mean = self.weights @ means
        spread = self.weights @ (np.array([spread for _, spread in found]) + (means - mean) ** 2)
        return np.asarray(np.abs(self.observed.values - mean) / np.sqrt(spread))

    def variances(self) -> tuple[Floats, float]:
        """Mean variances by block, and of the noise."""
        blocks = self.weights @ np.array([part.variances for part in self.parts])
        return blocks, float(self.weights @ np.array([part.noise for part in self.parts]))


def mixture(settings: Floats, observed: Observed) -> Mixture:
    """The mixture after the measurements; every setting is tried with less and with more noise, all equally likely."""
    kernels = observed.kernels()
    tried = np.repeat(settings, len(NOISES), axis=0)
    tried[:, -1] += np.tile(NOISES, len(settings))
    rough = rough_log_evidences(tried, observed, kernels)
    best = np.argsort(-rough, kind="stable")[:_TRIED_CLOSER]
    parts = [posterior(tried[i], observed, kernels) for i in best]
    evidence = np.array([part.log_evidence for part in parts])
    weights = np.exp(evidence - evidence.max())
    weights /= weights.sum()
    order = np.argsort(-weights, kind="stable")[:_MOST]
    kept = [int(i) for i in order if weights[i] >= _LEAST_WEIGHT] or [int(order[0])]
    return Mixture(
        observed=observed,
        parts=tuple(parts[i] for i in kept),
        weights=np.asarray(weights[kept] / weights[kept].sum()),
    )
