"""What hurts the match with a teacher: no labels, and nothing to fear where student and teacher are equal."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from edgekd.data.counter import hashed
from edgekd.nn.channels.groups import ChannelGroup
from edgekd.prune.importance import Evidence, Importance, Need
from edgekd.prune.importances.gates import mean_over_images
from edgekd.train.objective import present

TEMPERATURE = 4.0
"""That of the objective `kd`."""
DRAWS = 2
"""Random directions per image. More sharpen single scores; the mean over images does that already."""
_STREAM = 0x5167


class Distillation(Importance):
    """The increase of the distillation loss T^2 KL(teacher || student) that an expansion to second order predicts.

    A network that is its own teacher stands at the minimum of that loss, where every gradient is 0, so first-order
    scores are silent just where a teacher is pruned. The second-order term is not. The Hessian with respect to the
    logits is that of the softmax, `F = diag(p) - p p^T = B B^T` with `B = diag(sqrt p) - p sqrt(p)^T`, so `J_u^T F J_u`
    is the mean of `(J_u^T B e)^2` over random signs e: one backward pass per draw, and no Hessian of the network
    (Gauss-Newton; the signs as Hutchinson 1990). The first-order term counts where student and teacher differ:
    a unit that pulls it away scores less, and may score below 0.

    The signs of an image follow from its pixels, so that scores depend on neither order nor batches.
    """

    name = "kd"
    needs: ClassVar = frozenset({Need.IMAGES, Need.TEACHER})
    comparable = True
    formula = "mean over images of 1/2 J_u^T F J_u - dL_n/dz_u, J_u = d logits/dz_u, F the softmax's Fisher matrix at T"
    source = "ours; its parts are Theis et al. 2018, arXiv 1801.05787, and Hinton et al. 2015, arXiv 1503.02531"

    def scores(self, evidence: Evidence, groups: Sequence[ChannelGroup]) -> dict[str, Tensor]:
        teacher = present(evidence.teacher, "a teacher")

        def losses(logits: Tensor, images: Tensor, labels: Tensor | None) -> list[Tensor]:
            logits = logits.float()
            with torch.no_grad():
                p = (logits / TEMPERATURE).softmax(1)
                towards = TEMPERATURE * (p - (teacher(images).float() / TEMPERATURE).softmax(1))
                directions = [_factor_times(p, signs) for signs in _signs(images, logits.shape[1])]
            return [(logits * v).sum() for v in (towards, *directions)]

        return mean_over_images(evidence, groups, losses, _increase)


def _increase(gradients: Sequence[Tensor]) -> Tensor:
    """(N, units): what closing a gate adds to each image's loss; the gate goes from 1 to 0, hence the minus."""
    first, *seconds = gradients
    return torch.stack(seconds).square().mean(0) / 2 - first


def _factor_times(p: Tensor, signs: Tensor) -> Tensor:
    """(N, K): B e of `diag(p) - p p^T = B B^T`, for each image's probabilities and signs."""
    root = p.sqrt() * signs
    return root - p * root.sum(1, keepdim=True)


def _signs(images: Tensor, classes: int) -> list[Tensor]:
    """`DRAWS` tensors (N, K) of +1 and -1, a pure function of each image's pixels."""
    numbers = np.arange(classes, dtype=np.int64)
    rows = []
    for image in images.cpu():
        seed = int.from_bytes(hashlib.sha256(image.contiguous().numpy().tobytes()).digest()[:8], "little")
        rows.append([hashed(numbers, seed, _STREAM, draw) & np.uint64(1) for draw in range(DRAWS)])
    bits = torch.from_numpy(np.array(rows).astype(np.float32)).to(images.device)
    return list((2 * bits - 1).unbind(1))
