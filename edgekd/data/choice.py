"""Choosing images by what a model says of them: which are worth training on, which cover the rest, how far data moved.

Pure functions of arrays; who asks the model, and what is done with the choice, is decided elsewhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd.errors import UserError

Points = npt.NDArray[np.floating[Any]]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]


def probabilities(logits: Points) -> Float64Array:
    """(N, K) float64 softmax of logits (N, K)."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    weights = np.exp(shifted)
    found: Float64Array = weights / weights.sum(axis=1, keepdims=True)
    return found


def entropies(p: Float64Array) -> Float64Array:
    """(N,) entropy in nats of rows of probabilities (N, K)."""
    found: Float64Array = -(p * np.log(np.maximum(p, np.finfo(np.float64).tiny))).sum(axis=1)
    return found


def confident_and_balanced(
    p: Float64Array, *, threshold: float, per_class: int | None = None
) -> tuple[Int64Array, Int64Array]:
    """(rows, classes) of the images that a model is sure of, the surest of each class where there are too many.

    Source: the selection of KD^3 (Tang et al. 2023, arXiv 2307.11469): confident and balanced over the classes. Ties go
    to the earlier row, so the choice is repeatable.

    Args:
        p: (N, K) probabilities.
        threshold: Least largest probability of a row that is taken.
        per_class: Most rows of one class; None takes all that are sure.

    Returns:
        (M,) rows ascending, and (M,) the class that each is taken for.
    """
    sure, taken = p.max(axis=1), p.argmax(axis=1)
    rows: list[int] = []
    for label in range(p.shape[1]):
        members = np.flatnonzero((taken == label) & (sure >= threshold))
        best = members[np.argsort(-sure[members], kind="stable")]
        rows += best[:per_class].tolist()
    chosen = np.array(sorted(rows), dtype=np.int64)
    return chosen, taken[chosen].astype(np.int64)


def separation(values: Points, reference: Points) -> float:
    """Probability that a value is larger than one of the reference, ties counting half: 0.5 when nothing moved.

    The area under the ROC curve of "is it one of `values`?" (Mann and Whitney 1947), in [0, 1].

    Args:
        values: (N,).
        reference: (M,).
    """
    ordered = np.sort(reference)
    below, upto = (np.searchsorted(ordered, values, side=side) for side in ("left", "right"))
    return float((below + upto).mean() / (2 * len(ordered)))


def k_centres(points: Points, count: int, *, given: Points | None = None) -> tuple[Int64Array, Float64Array]:
    """(order, distances): greedily, each time the point farthest from everything chosen so far.

    Within twice the least possible largest distance of any choice of so many centres (Gonzalez 1985); as a choice of
    what to label: Sener and Savarese 2018 (arXiv 1708.00489), in the space of probabilities PCoreSet (Kang et al. 2025,
    arXiv 2506.00910). The nearest distance of every point is kept and lowered, N distances a pick; the reference of
    PCoreSet computes all of them anew.

    Args:
        points: (N, D).
        count: How many, at most N.
        given: (M, D) points that are chosen already, such as those of images with labels; without any, the first choice
            is the point nearest to the mean, which is no outlier.

    Returns:
        (count,) rows in the order in which they were chosen, and (count,) how far each was from all before it; the
        first one without `given` is infinitely far.

    Raises:
        UserError: `count` below 1 or above N.
    """
    if not 1 <= count <= len(points):
        raise UserError(f"Expected to choose 1 to {len(points)} of {len(points)} images, got {count}.")
    x = points.astype(np.float64)
    nearest = np.full(len(x), np.inf)
    order, far = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.float64)
    for point in () if given is None else given.astype(np.float64):
        np.minimum(nearest, ((x - point) ** 2).sum(axis=1), out=nearest)
    for place in range(count):
        first = np.isinf(nearest).all()
        row = int(((x - x.mean(axis=0)) ** 2).sum(axis=1).argmin()) if first else int(nearest.argmax())
        order[place], far[place] = row, np.sqrt(nearest[row])
        np.minimum(nearest, ((x - x[row]) ** 2).sum(axis=1), out=nearest)
        nearest[row] = -1.0  # of equal points each is still chosen once, after all that differ
    return order, far
