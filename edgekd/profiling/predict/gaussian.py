"""Gaussian process regression on blocks of columns, with noise that has outliers; the arithmetic of the transfer model.

Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006: evidence (eq. 5.8, 5.9), leave-one-out (5.12).
Outliers: Student-t noise as a scale mixture of normals, its weights by expectation maximisation (Lange, Little and
Taylor, 1989). Everything is in relative units: a target value is latency / (scale * base) - 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

from edgekd.profiling.predict.archs import Floats

LEVEL = 10.0
"""Variance of the constant: the scale of a device is not known beforehand."""
_FREEDOM = 4.0
"""Degrees of freedom of the noise."""
_TYPICAL_VARIANCE, _TYPICAL_NOISE = 0.03, 0.002
_DOUBT = 3.0
"""Standard deviation of the logarithm of a variance before any data."""
_SCALE_FREEDOM = 6.0
"""How much a particle's own scale of variance is trusted, in observations."""


@dataclass(frozen=True, kw_only=True)
class Observed:
    """Measurements of a device.

    Attributes:
        blocks: For each block its columns at the measured networks.
        values: (n,) relative latencies.
        rounding: (n,) variance that comes from rounding.
    """

    blocks: Sequence[Floats]
    values: Floats
    rounding: Floats

    def kernels(self) -> Floats:
        """(blocks, n, n) covariances of the measured values, each for a variance of one."""
        return np.stack([block @ block.T for block in self.blocks])


@dataclass(frozen=True, kw_only=True)
class Posterior:
    """One setting of the variances, after the measurements.

    Attributes:
        variances: By block.
        noise: Variance of the noise.
        weights: (n,) how much each measurement counts.
        factor: Lower Cholesky factor of the covariance of the measured values.
        inflation: What the measurements say the scale of all variances is.
        log_evidence: Up to a constant that all settings share.
    """

    variances: Floats
    noise: float
    weights: Floats
    factor: Floats
    inflation: float
    log_evidence: float

    def predict(self, observed: Observed, blocks: Sequence[Floats]) -> tuple[Floats, Floats]:
        """(N,) mean and variance, without noise, at other networks."""
        cross = np.full((len(blocks[0]), len(observed.values)), LEVEL)
        prior = np.full(len(blocks[0]), LEVEL)
        for variance, here, there in zip(self.variances, blocks, observed.blocks, strict=True):
            cross += variance * (here @ there.T)
            prior += variance * np.einsum("ij,ij->i", here, here)
        half = solve_triangular(self.factor, cross.T, lower=True, check_finite=False)
        mean = half.T @ solve_triangular(self.factor, observed.values, lower=True, check_finite=False)
        left = np.maximum(prior - np.einsum("ij,ij->j", half, half), 0.0) * self.inflation
        return np.asarray(mean), np.asarray(left)

    def left_out(self, observed: Observed) -> tuple[Floats, Floats]:
        """(n,) mean and variance, with noise, of each measured value given the others."""
        inverse = cho_solve((self.factor, True), np.eye(len(observed.values)))
        spread = 1 / np.diag(inverse)
        # The noise of an outlier was enlarged to lessen its pull; it is judged by what noise usually is.
        usual = spread - self.noise / self.weights + self.noise
        return observed.values - spread * (inverse @ observed.values), usual * self.inflation


def posterior(setting: Floats, observed: Observed, kernels: Floats) -> Posterior:
    """The posterior for given log variances (one per block, then the noise); outliers lose weight."""
    variances, noise = np.exp(setting[:-1]), float(np.exp(setting[-1]))
    signal = _signal(variances, kernels)
    weights = outlier_weights(setting, observed, kernels, signal=signal)
    covariance = signal + np.diag(noise / weights + observed.rounding)
    factor = cholesky(covariance, lower=True, check_finite=False)
    half = solve_triangular(factor, observed.values, lower=True, check_finite=False)
    misfit, count = float(half @ half), len(observed.values)
    evidence = -float(np.log(np.diag(factor)).sum())
    evidence -= 0.5 * (_SCALE_FREEDOM + count) * float(np.log1p(misfit / _SCALE_FREEDOM))
    evidence += 0.5 * _FREEDOM * float(np.sum(np.log(weights) - weights))
    return Posterior(
        variances=variances,
        noise=noise,
        weights=weights,
        factor=factor,
        inflation=(_SCALE_FREEDOM + misfit) / (_SCALE_FREEDOM + count),
        log_evidence=evidence,
    )


def rough_log_evidences(settings: Floats, observed: Observed, kernels: Floats) -> Floats:
    """(M,) log evidence of many settings at once, with no measurement taken for an outlier."""
    count = len(observed.values)
    signal = LEVEL + np.tensordot(np.exp(settings[:, :-1]), kernels, axes=1)
    spread = np.exp(settings[:, -1:]) + observed.rounding
    factors = np.linalg.cholesky(signal + spread[:, None, :] * np.eye(count))
    half = np.linalg.solve(factors, np.broadcast_to(observed.values[:, None], (len(settings), count, 1)))
    misfit = np.einsum("mij,mij->m", half, half)
    found = -np.log(np.diagonal(factors, axis1=1, axis2=2)).sum(axis=1)
    return np.asarray(found - 0.5 * (_SCALE_FREEDOM + count) * np.log1p(misfit / _SCALE_FREEDOM))


def outlier_weights(setting: Floats, observed: Observed, kernels: Floats, *, signal: Floats | None = None) -> Floats:
    """(n,) in (0, 1], how much each measurement counts."""
    noise = float(np.exp(setting[-1]))
    if signal is None:
        signal = _signal(np.exp(setting[:-1]), kernels)
    weights = np.ones(len(observed.values))
    for _ in range(5):
        spread = noise / weights + observed.rounding
        inverse = np.linalg.inv(signal + np.diag(spread))
        residual = spread * (inverse @ observed.values)
        unsure = np.maximum(spread - spread**2 * np.diag(inverse), 0.0)
        ratio = (residual**2 + unsure) / (noise + observed.rounding)
        weights = np.minimum((_FREEDOM + 1) / (_FREEDOM + ratio), 1.0)
    return weights


def most_likely_setting(observed: Observed) -> Floats:
    """Log variances, one per block and the noise's, that maximise the evidence with a wide prior on each."""
    kernels = observed.kernels()
    flat = kernels.reshape(len(kernels), -1)
    typical = np.log(np.array([*[_TYPICAL_VARIANCE] * len(kernels), _TYPICAL_NOISE]))
    bounds = [*[(-14.0, 3.0)] * len(kernels), (-12.0, 0.0)]
    setting, weights = typical, np.ones(len(observed.values))

    def loss(at: Floats) -> tuple[float, Floats]:
        value, slope = _evidence(at, observed, flat, weights)
        away = (at - typical) / _DOUBT
        return 0.5 * float(away @ away) - value, away / _DOUBT - slope

    for _ in range(3):
        setting = minimize(loss, setting, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 30}).x
        weights = outlier_weights(setting, observed, kernels)
    return np.asarray(setting)


def _evidence(setting: Floats, observed: Observed, flat: Floats, weights: Floats) -> tuple[float, Floats]:
    """The log evidence and its gradient; `flat` holds each kernel as a row."""
    variances, noise, count = np.exp(setting[:-1]), float(np.exp(setting[-1])), len(weights)
    covariance = (LEVEL + variances @ flat).reshape(count, count)
    covariance[np.diag_indices(count)] += noise / weights + observed.rounding + 1e-10
    factor = np.linalg.cholesky(covariance)
    inverse = cho_solve((factor, True), np.eye(count), check_finite=False)
    towards = inverse @ observed.values
    value = -0.5 * float(observed.values @ towards) - float(np.log(np.diag(factor)).sum())
    slope = 0.5 * variances * (flat @ (np.outer(towards, towards) - inverse).ravel())
    louder = 0.5 * noise * np.sum((towards**2 - np.diag(inverse)) / weights)
    return value, np.append(slope, louder)


def _signal(variances: Floats, kernels: Floats) -> Floats:
    return np.asarray(LEVEL + np.tensordot(variances, kernels, axes=1))
