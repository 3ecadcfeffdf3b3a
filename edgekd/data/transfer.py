"""How well a network's features fit a task, from a few labels and without training anything.

LogME, the evidence of a linear model on the features (You et al. 2021, arXiv 2102.11005), per sample and mean over the
classes: higher is better, and a network with many features is not favoured, because the evidence pays for each. Scores
of few labels are noisy, so they come with an interval from resampled images, and nothing is read into overlaps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd.errors import UserError

Points = npt.NDArray[np.floating[Any]]
Int64Array = npt.NDArray[np.int64]

ROUNDS = 100
TOLERANCE = 1e-5
RESAMPLED = 20


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How well features fit labels.

    Attributes:
        score: LogME.
        low: Lower end of the range of 90 % of the resampled scores, about `score`.
        high: Upper end.
    """

    score: float
    low: float
    high: float


def logme(features: Points, labels: Int64Array) -> float:
    """The largest log evidence per sample of `y ~ N(F w, 1/b)`, `w ~ N(0, 1/a)`, mean over one-hot classes.

    a and b are found by the fixed point of the authors, in the basis of the singular vectors, so a class costs
    O(min(N, D)) a round.

    Args:
        features: (N, D).
        labels: (N,).

    Raises:
        UserError: Fewer than two classes, which every network fits.
    """
    classes = np.unique(labels)
    if len(classes) < 2:
        raise UserError("Features are compared on labels of at least two classes, and there is one.")
    f = features.astype(np.float64)
    left, singular, _ = np.linalg.svd(f, full_matrices=False)
    return float(np.mean([_evidence(left, singular**2, (labels == c).astype(np.float64)) for c in classes]))


def _evidence(left: npt.NDArray[np.float64], s: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> float:
    n, kept = len(y), s > 1e-12 * max(float(s.max(initial=0.0)), 1e-300)
    s = s[kept]
    x2 = (left[:, kept].T @ y) ** 2
    outside = max(float(y @ y - x2.sum()), 1e-12)
    a, b = 1.0, 1.0
    for _ in range(ROUNDS):
        t = a / b
        used = float((s / (t + s)).sum())
        size = float((s * x2 / (t + s) ** 2).sum())
        left_over = float((x2 / (1 + s / t) ** 2).sum()) + outside
        a, b = used / max(size, 1e-12), (n - used) / left_over
        if abs(a / b / t - 1) < TOLERANCE:
            break
    t = a / b
    size = float((s * x2 / (t + s) ** 2).sum())
    left_over = float((x2 / (1 + s / t) ** 2).sum()) + outside
    evidence = len(s) / 2 * np.log(a) + n / 2 * np.log(b / (2 * np.pi)) - 0.5 * np.log(a + b * s).sum()
    return float(evidence - b / 2 * left_over - a / 2 * size) / n


def fit_of(features: Points, labels: Int64Array, *, seed: int = 0) -> Fit:
    """LogME with an interval from halves of the images, drawn anew.

    Images drawn with repeats would make features look better than they are, so halves are drawn without; their spread
    is that of the whole times sqrt(2).

    Args:
        features: (N, D).
        labels: (N,).
        seed: Of the halves.
    """
    score, rng = logme(features, labels), np.random.default_rng(seed)
    found = []
    for _ in range(RESAMPLED):
        rows = rng.permutation(len(labels))[: len(labels) // 2]
        found.append(logme(features[rows], labels[rows]) if len(np.unique(labels[rows])) > 1 else score)
    apart = (np.array(found) - np.mean(found)) / np.sqrt(2)
    low, high = np.quantile(apart, (0.05, 0.95))
    return Fit(score=score, low=score + float(low), high=score + float(high))


def weights_from_scores(scores: Mapping[str, float], *, power: float = 1.0) -> dict[str, float]:
    """Shares of several teachers: `(e - e_min)^power`, normalised; the least fitting one has none.

    Source: DistillWeighted (Borup, Phoo and Hariharan 2023, arXiv 2304.12314). Equal scores share equally.

    Args:
        scores: By name; higher is better.
        power: Above 1 the best one counts for more.
    """
    least = min(scores.values())
    above = {name: (score - least) ** power for name, score in scores.items()}
    total = sum(above.values())
    if total <= 0:
        return dict.fromkeys(scores, 1 / len(scores))
    return {name: value / total for name, value in above.items()}
