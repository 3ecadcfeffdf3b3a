"""Proxies that read the gradient of the loss at a random network's weights, on one labelled batch."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from edgekd.search.proxies.network import loss_gradients
from edgekd.search.proxy import Batch, Proxy, ScoreStudent

_SOURCE = "Abdelfattah, Mehrotra, Dudziak and Lane 2021, arXiv 2101.08134"


class GradNorm(Proxy):
    """`sum_l ||dL/dw_l||_2` over the weights w_l of two or more axes, L the mean cross-entropy of the batch."""

    uses_weights: ClassVar[bool] = True
    formula: ClassVar[str] = "sum_l ||dL/dw_l||_2, L the cross-entropy of the batch"
    source: ClassVar[str] = _SOURCE

    def bind(self, teacher: nn.Module, batch: Batch) -> ScoreStudent:
        return lambda student: sum(float(grad.norm()) for _, grad in loss_gradients(student, batch))


class SNIP(Proxy):
    """`sum_w |w * dL/dw|`: how far the loss would move if single weights were removed."""

    uses_weights: ClassVar[bool] = True
    formula: ClassVar[str] = "sum_w |w * dL/dw|, L the cross-entropy of the batch"
    source: ClassVar[str] = f"Lee, Ajanthan and Torr 2019, arXiv 1810.02340; as a score: {_SOURCE}"

    def bind(self, teacher: nn.Module, batch: Batch) -> ScoreStudent:
        return lambda student: sum(
            float((weight * grad).abs().sum()) for weight, grad in loss_gradients(student, batch)
        )
