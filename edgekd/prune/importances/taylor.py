"""What the loss on labelled images says of a unit, by its gradient with respect to the unit's gate (`gates.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from edgekd.nn.channels.groups import ChannelGroup
from edgekd.prune.importance import Evidence, Importance, Need
from edgekd.prune.importances.gates import mean_over_images
from edgekd.train.objective import present


class Taylor(Importance):
    """The squared change of the mean loss that a first-order expansion predicts.

    Deviations: the gate stands before the layers that read the unit, not behind the BatchNorm that makes it, so that
    one definition serves every coupling; and the square is taken of the mean over all images, not of each batch, so
    that the batch size does not change the score. On a trained network the mean gradient is close to 0: `fisher` sees
    more.
    """

    name = "taylor"
    needs: ClassVar = frozenset({Need.IMAGES, Need.LABELS})
    comparable = True
    formula = "(mean over images of dL/dz_u)^2, z_u the gate of what is read of u"
    source = "Molchanov et al. 2019, arXiv 1906.10771"

    def scores(self, evidence: Evidence, groups: Sequence[ChannelGroup]) -> dict[str, Tensor]:
        means = mean_over_images(evidence, groups, _cross_entropy, lambda gradients: gradients[0])
        return {name: mean.square() for name, mean in means.items()}


class Fisher(Importance):
    """The increase of the mean loss that a second-order expansion predicts, with the empirical Fisher information for
    the Hessian: gradients of single images do not cancel. No Hessian is computed.

    Deviation: the gate stands before the layers that read the unit, as in `taylor`.
    """

    name = "fisher"
    needs: ClassVar = frozenset({Need.IMAGES, Need.LABELS})
    comparable = True
    formula = "1/2 mean over images of (dL_n/dz_u)^2, z_u the gate of what is read of u"
    source = "Theis et al. 2018, arXiv 1801.05787; over coupled layers as Liu et al. 2021, arXiv 2108.00708"

    def scores(self, evidence: Evidence, groups: Sequence[ChannelGroup]) -> dict[str, Tensor]:
        return mean_over_images(evidence, groups, _cross_entropy, lambda gradients: gradients[0].square() / 2)


def _cross_entropy(logits: Tensor, images: Tensor, labels: Tensor | None) -> list[Tensor]:
    return [F.cross_entropy(logits.float(), present(labels, "labels"), reduction="sum")]
