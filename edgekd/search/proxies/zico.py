"""ZiCo: how steady the gradients of a random network are from batch to batch."""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor, nn

from edgekd.search.proxies.network import halves, loss_gradients
from edgekd.search.proxy import Batch, Proxy, ScoreStudent, Unscorable


class ZiCo(Proxy):
    """`sum_l log sum_w mean|g_w| / std(g_w)`, mean and deviation over the gradients of two halves of the batch.

    Higher for networks with many weights whose gradients agree. As in the authors' code the deviation is that of the
    signed gradient (the paper takes its absolute value), and weights and layers without deviation are left out.
    Deviation: the halves are dealt from the sorted batch, so that the order of the samples does not matter.
    """

    uses_weights: ClassVar[bool] = True
    formula: ClassVar[str] = "sum_l log(sum_w mean|g_w| / std(g_w)), g the gradients of two half batches"
    source: ClassVar[str] = "Li, Yang, Bhardwaj and Marculescu 2023, arXiv 2301.11300"

    def bind(self, teacher: nn.Module, batch: Batch) -> ScoreStudent:
        first, second = halves(batch)

        def score(student: nn.Module) -> float:
            pairs = zip(loss_gradients(student, first), loss_gradients(student, second), strict=True)
            steadiness = [inverse_variation(a, b) for (_, a), (_, b) in pairs]
            logs = [math.log(value) for value in steadiness if value > 0]
            if not logs:
                raise Unscorable("The gradients of its weights do not change with the images.")
            return sum(logs)

        return score


def inverse_variation(a: Tensor, b: Tensor) -> float:
    """`sum_w mean(|a_w|, |b_w|) / std(a_w, b_w)` over the weights whose two gradients differ.

    Of two values the mean is (|a| + |b|) / 2 and the population's standard deviation |a - b| / 2.
    """
    difference = (a - b).abs()
    ratios = (a.abs() + b.abs()) / difference
    return float(ratios[difference > 0].double().sum())
