"""How sure a teacher should be: the temperature at which its probabilities are those of being right.

What a student takes over from a teacher is its confidence too. FIRST (arXiv 2408.12168) recalibrates the teacher before
it teaches; `calibrating_temperature` gives the temperature for the objective `first`. It is chosen on held-out images:
take the `select` split, never the one that the result is reported on. How far off probabilities are is told by
`edgekd.tasks.classification.calibration_error`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgekd.errors import UserError

_STEPS = 60
_SHARPEST, _FLATTEST = 0.05, 20.0


def calibrating_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T in [0.05, 20] with the least cross-entropy of softmax(logits / T) with the labels, to six digits.

    Temperature scaling (Guo, Pleiss, Sun and Weinberger 2017, arXiv 1706.04599). The cross-entropy is convex in 1 / T,
    so the sign of its slope halves the interval at each step; the authors of FIRST try some values and take the least
    calibration error, which depends on the bins.

    Args:
        logits: (N, K) of held-out images.
        labels: (N,) int64.

    Raises:
        UserError: No images, or not one label for each.
    """
    if len(logits) == 0 or labels.shape != (len(logits),):
        raise UserError(
            f"A temperature is chosen on labelled images: got {len(logits)} rows of logits and labels of shape "
            f"{tuple(labels.shape)}.",
            hint="give the teacher's logits on the select split, with its labels",
        )
    scores = logits.double()
    target = scores.gather(1, labels[:, None])[:, 0]
    low, high = 1 / _FLATTEST, 1 / _SHARPEST
    for _ in range(_STEPS):
        middle = (low + high) / 2
        expected = (torch.softmax(middle * scores, dim=1) * scores).sum(1)
        # Of -log p_y = logsumexp(b * s) - b * s_y, by b.
        slope = float((expected - target).mean())
        low, high = (low, middle) if slope > 0 else (middle, high)
    return 2 / (low + high)
