"""Classification: top-1, agreement with a reference, their interval, how well probabilities hold, supervised loss."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgekd.errors import BuildFailed, UserError

if TYPE_CHECKING:
    from torch import Tensor

FloatArray = npt.NDArray[np.floating[Any]]
Int64Array = npt.NDArray[np.int64]


def predictions(logits: FloatArray) -> Int64Array:
    """(N,) int64: the class with the largest logit; the lowest number among equals.

    Args:
        logits: (N, K).

    Raises:
        UserError: Another shape.
        BuildFailed: NaN among the logits: an argmax of them would look like an answer.
    """
    if logits.ndim != 2 or 0 in logits.shape:
        raise UserError(f"Logits: expected shape (N, K), got {logits.shape}.")
    bad = np.isnan(logits).any(axis=1)
    if bad.any():
        raise BuildFailed(
            f"The model gives NaN for {int(bad.sum())} of {len(logits)} images (the first is number "
            f"{int(np.argmax(bad))}).",
            hint="FP16 overflow and broken weights do this; compare with the FP32 model",
        )
    found: Int64Array = logits.argmax(axis=1).astype(np.int64)
    return found


def top1(logits: FloatArray, labels: Int64Array) -> float:
    """Share of images, in [0, 1], whose largest logit is the label's.

    Args:
        logits: (N, K).
        labels: (N,) in 0 ... K - 1.

    Raises:
        UserError: Shapes that do not belong together, or a label beyond K.
    """
    found = predictions(logits)
    if labels.shape != found.shape:
        raise UserError(f"Labels: expected shape ({len(found)},), got {labels.shape}.")
    if int(labels.max()) >= logits.shape[1]:
        raise UserError(
            f"Labels: the data has class number {int(labels.max())}, but the model has {logits.shape[1]} outputs."
        )
    return float((found == labels).mean())


def agreement(logits: FloatArray, reference_logits: FloatArray) -> float:
    """Share of images, in [0, 1], on which both have the same top-1.

    Args:
        logits: (N, K).
        reference_logits: (N, K), the teacher's or the FP32 model's.

    Raises:
        UserError: Different shapes.
    """
    if logits.shape != reference_logits.shape:
        raise UserError(f"Agreement needs equal shapes, got {logits.shape} and {reference_logits.shape}.")
    return float((predictions(logits) == predictions(reference_logits)).mean())


def guesses(logits: FloatArray, labels: Int64Array) -> str | None:
    """A sentence where the answers are no better than guessing, None where they are better.

    No better means that the 95 % interval of the accuracy reaches down to 1 / K, or that all images get one class while
    their labels have several. A teacher like that ruins what learns from it, and nothing else would say so: its soft
    labels look like any others.

    Args:
        logits: (N, K), the teacher's.
        labels: (N,) in 0 ... K - 1.
    """
    found, classes = predictions(logits), logits.shape[1]
    hits, chance = int((found == labels).sum()), 1 / classes
    low, _ = wilson_interval(hits, len(labels))
    constant = len(np.unique(found)) == 1 and len(np.unique(labels)) > 1
    if low > chance and not constant:
        return None
    what = "gives every image the same class" if constant else "is no better than guessing"
    return (
        f"The teacher {what}: it knows {hits} of {len(labels)} images, and chance is {100 * chance:.3g} %. "
        "What learns from it learns little else. Usual causes are another order of classes (--labels), another "
        "normalisation (--mean, --std, --channel-order), or weights that were never trained."
    )


def wilson_interval(k: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """(low, high), both in [0, 1]: the score interval of a proportion, sound near 0 and 1 and for small n.

    centre = (k + z^2 / 2) / (n + z^2); half = z / (n + z^2) * sqrt(k (n - k) / n + z^2 / 4)

    Source: Wilson 1927.

    Args:
        k: Successes.
        n: Trials, at least 1.
        z: Normal quantile; 1.96 gives 95 %.

    Raises:
        ValueError: Not 0 <= k <= n with n >= 1.
    """
    if n < 1 or not 0 <= k <= n:
        raise ValueError(f"expected 0 <= k <= n and n >= 1, got k = {k}, n = {n}")
    scale = n + z * z
    centre = (k + z * z / 2) / scale
    half = z / scale * math.sqrt(k * (n - k) / n + z * z / 4)
    return max(0.0, centre - half), min(1.0, centre + half)


def negative_log_likelihood(logits: FloatArray, labels: Int64Array) -> float:
    """Mean of -log softmax(logits) of the label, in nats: low where probabilities are high for the right class.

    Args:
        logits: (N, K).
        labels: (N,) in 0 ... K - 1.
    """
    log_p = _log_softmax(logits)
    return float(-log_p[np.arange(len(labels)), labels].mean())


def calibration_error(logits: FloatArray, labels: Int64Array, *, bins: int = 15) -> float:
    """Expected calibration error in [0, 1]: the mean gap of confidence and accuracy over bins of equal width.

    Naeini, Cooper and Hauskrecht 2015; the largest probability is the confidence.

    Args:
        logits: (N, K).
        labels: (N,) in 0 ... K - 1.
        bins: Of the confidence.
    """
    confidence = np.exp(_log_softmax(logits).max(axis=1))
    gaps = np.zeros(bins)
    number = np.clip(np.ceil(confidence * bins).astype(np.int64), 1, bins) - 1
    np.add.at(gaps, number, confidence - (predictions(logits) == labels))
    return float(np.abs(gaps).sum() / len(labels))


def _log_softmax(logits: FloatArray) -> npt.NDArray[np.float64]:
    """(N, K) in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    found: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found


def supervised_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Scalar float32: mean cross-entropy against (smoothed) labels, computed in float32 under any autocast.

    Args:
        logits: (N, K).
        labels: (N,) int64, or (N, K) shares of the classes.
        smoothing: Share of the target spread evenly over all classes.
    """
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits.float(), labels, label_smoothing=smoothing)


def summed_loss(logits: Tensor, shares: Tensor, smoothing: float = 0.0) -> Tensor:
    """Scalar float32: the cross-entropy summed over what is known of the labels; 0 with zero gradients if nothing is.

    Divided by the sum of all shares it is `supervised_loss` of the images with a label.

    Args:
        logits: (N, K).
        shares: (N, K) float32 shares of the classes, in all what is known of each image: 1 with a label, 0 without one,
            between the two where images with and without were mixed.
        smoothing: Share of the target spread evenly over all classes.
    """
    known = shares.sum(1, keepdim=True)
    targets = (1 - smoothing) * shares + smoothing / shares.shape[1] * known
    return -(targets * logits.float().log_softmax(1)).sum()
