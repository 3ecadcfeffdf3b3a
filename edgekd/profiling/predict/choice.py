"""Which networks to measure on a new device, so that the few measurements say the most about all the others.

Greedy A-optimal design: each next network is the one that lowers the model's variance the most, summed over the
universe. Variance does not depend on what is measured, so the whole list can be chosen before the device is at hand;
after some measurements `next_sample` uses what they say about which variances matter.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgekd.errors import UserError
from edgekd.profiling.predict.archs import Archs, Floats, Ints
from edgekd.profiling.predict.gaussian import LEVEL
from edgekd.profiling.predict.observations import References, Samples, samples_in_order
from edgekd.profiling.predict.population import Population, learn
from edgekd.profiling.predict.transfer import LatencyPredictor

_POOL = 1500
_ABSOLUTE = 0.3
"""Part of the noise that does not shrink with the latency: short latencies are known less well in relative terms."""


def choose_samples(
    archs: Archs,
    reference_latencies: References,
    count: int,
    *,
    seed: int = 0,
    measured: Sequence[int] = (),
    population: Population | None = None,
) -> list[int]:
    """Indices of the networks to measure, the most telling first.

    Args:
        archs: As for `fit`.
        reference_latencies: As for `fit`.
        count: How many; at most those that are not measured yet.
        seed: Decides which part of a large universe is looked at; equal arguments give equal choices.
        measured: Indices that are measured already, or will be; they are not chosen again.
        population: As for `fit`.

    Raises:
        UserError: A count that is not positive or too large, or arguments in no accepted form.
    """
    known = learn(archs, reference_latencies, seed=seed) if population is None else population
    # Each setting is a device that the new one may be like: the covariance of not knowing which is their mean.
    settings = np.exp(known.settings).mean(axis=0)
    return _greedy(known, settings[:-1], float(settings[-1]), count, tuple(measured), seed)


def next_sample(predictor: LatencyPredictor, samples: Samples, *, seed: int = 0) -> int:
    """Index of the network to measure next on a device of which `samples` are known.

    Args:
        predictor: Fitted to the samples; says which variances matter on this device.
        samples: As for `fit`.
        seed: As for `choose_samples`.
    """
    rows, _ = samples_in_order(samples, len(predictor.population.archs))
    variances, noise = predictor.fitted.variances()
    return _greedy(predictor.population, variances, noise, 1, tuple(int(row) for row in rows), seed)[0]


def _greedy(
    known: Population, variances: Floats, noise: float, count: int, measured: tuple[int, ...], seed: int
) -> list[int]:
    taken = sorted(set(measured))
    free = np.setdiff1d(np.arange(len(known.archs)), np.array(taken, dtype=np.int64))
    if not 0 < count <= len(free):
        raise UserError(f"count: expected 1 to {len(free)} networks that are not measured yet, got {count}.")
    rng = np.random.default_rng(seed)
    pool = rng.permutation(free)[: max(_POOL, count)]
    candidates = np.concatenate([np.array(taken, dtype=np.int64), pool])
    base, own = _columns(known, candidates, variances)
    _, all_ = _columns(known, rng.permutation(len(known.archs))[:_POOL], variances)
    noises = noise * (1 + _ABSOLUTE / base**2) / (1 + _ABSOLUTE)
    among, towards = own @ own.T, all_ @ own.T
    chosen: list[int] = []
    for turn in range(len(taken) + count):
        spread = np.diag(among) + noises
        gain = np.einsum("ij,ij->j", towards, towards) / spread
        gain[[*range(len(taken)), *chosen]] = -np.inf
        place = turn if turn < len(taken) else int(np.argmax(gain))
        if turn >= len(taken):
            chosen.append(place)
        share = among[:, place] / spread[place]
        towards = towards - np.outer(towards[:, place], share)
        among = among - np.outer(among[:, place], share)
    return [int(candidates[place]) for place in chosen]


def _columns(known: Population, rows: Ints, variances: Floats) -> tuple[Floats, Floats]:
    """(N,) base, and columns whose products are prior covariances."""
    base, blocks = known.basis.of_rows(rows)
    parts = [np.full((len(rows), 1), np.sqrt(LEVEL))]
    parts += [np.sqrt(variance) * block for variance, block in zip(variances, blocks, strict=True)]
    return base, np.concatenate(parts, axis=1)
