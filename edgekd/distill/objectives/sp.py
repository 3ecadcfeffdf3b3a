"""SP: samples that are alike for the teacher shall be alike for the student."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from edgekd.core.schema import Schema
from edgekd.distill.objectives.geometry import directions, gram, precise
from edgekd.train.objective import LossWeights, Objective, Signal, Signals, present

AUTHORS_BATCH = 64


class SPConfig(Schema):
    """`sp` has no arguments; its weight is `distill_weight`."""


class SP(Objective[SPConfig]):
    """`mean_i |G_s[i,:] - G_t[i,:]|^2`: G the N x N inner products of the last feature maps, its rows at length 1.

    Maps are flattened, so that networks may differ in channels and resolution.

    Deviation: the authors divide by N^2. A row has length 1 whatever N is, so that would halve the loss when the batch
    doubles; here it is the mean over samples, and the default weight is their 3000 at their batch of 64.
    """

    name = "sp"
    Config = SPConfig
    needs: ClassVar = frozenset({Signal.FEATURE_MAP})
    t_squared = False
    default_weights = LossWeights(supervised=1.0, distill=3000 / AUTHORS_BATCH)
    formula = "mean_i |G_s[i,:]/|G_s[i,:]| - G_t[i,:]/|G_t[i,:]||^2, G = F F^T over the batch"
    source = "Tung and Mori 2019, arXiv 1907.09682"

    def forward(self, student: Signals, teacher: Signals, labels: Tensor | None) -> Tensor:
        return similarity_distance(
            present(student.feature_map, Signal.FEATURE_MAP), present(teacher.feature_map, Signal.FEATURE_MAP)
        )


@precise
def similarity_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Scalar `mean_i |G_s[i,:] - G_t[i,:]|^2` of features (N, ...)."""
    difference = directions(gram(student.flatten(1))) - directions(gram(teacher.flatten(1)))
    return difference.square().sum(1).mean()
