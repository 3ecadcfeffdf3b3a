"""How much a network that is its own teacher should trust the labels, in closed form.

Training again on one's own answers is a second, stronger regularisation. Kernel ridge regression says how strong
(Borup and Andersen 2021, arXiv 2102.13088): with the smoother A = K (K + lambda I)^-1, the next predictions are
A (alpha * y + (1 - alpha) * y_last), so they are linear in alpha, and the best alpha on held-out targets needs no
search. For deep networks, which are no linear smoothers, it is an estimate: take the last network's outputs for g and
those of one student trained at alpha = 0 for h.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgekd.errors import UserError


def best_label_weight(targets: Tensor, on_labels: Tensor, on_outputs: Tensor) -> float:
    """alpha in [0, 1] with the least squared error of `alpha * on_labels + (1 - alpha) * on_outputs` from the targets.

    `alpha = <targets - h, g - h> / |g - h|^2`, clipped. 1 where both fits agree everywhere: then labels do as well.

    Args:
        targets: Held-out targets, (N, K), one-hot for classes; never those of the reported test split.
        on_labels: g, (N, K): predictions of the model that was fitted to the labels.
        on_outputs: h, (N, K): predictions of the model that was fitted to the last model's outputs.

    Raises:
        UserError: The shapes differ.
    """
    if not targets.shape == on_labels.shape == on_outputs.shape:
        raise UserError(
            "The weight of the labels compares predictions of the same images and classes, but the shapes are "
            f"{tuple(targets.shape)}, {tuple(on_labels.shape)} and {tuple(on_outputs.shape)}.",
            hint="give one-hot targets, and predictions of both models on the same images",
        )
    change = on_labels.double() - on_outputs.double()
    length = float(change.square().sum())
    if length == 0:
        return 1.0
    return min(1.0, max(0.0, float(((targets.double() - on_outputs.double()) * change).sum()) / length))


def ridge_smoother(kernel: Tensor, regularisation: float) -> Tensor:
    """(N, N) `K (K + lambda I)^-1` of a symmetric kernel matrix: maps training targets to fitted values."""
    shifted = kernel + regularisation * torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
    solved: Tensor = torch.linalg.solve(shifted, kernel)
    return solved.T


def self_distilled(kernel: Tensor, targets: Tensor, *, regularisation: float, alpha: float, rounds: int) -> Tensor:
    """(N, K) fitted values after `rounds` of self-distillation; round 1 is the ordinary fit.

    For alpha > 0 they tend to the ordinary fit at regularisation / alpha, for alpha = 0 to zero.

    Args:
        kernel: (N, N), symmetric, positive semi-definite.
        targets: (N, K).
        regularisation: lambda.
        alpha: Weight of the labels in every round after the first.
        rounds: At least 1.
    """
    smoother = ridge_smoother(kernel, regularisation)
    fitted = smoother @ targets
    for _ in range(rounds - 1):
        fitted = smoother @ (alpha * targets + (1 - alpha) * fitted)
    return fitted
