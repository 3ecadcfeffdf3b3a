"""RKD: match the distances between samples and the angles that they form."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from edgekd.core.schema import Schema
from edgekd.distill.objectives.geometry import directions, precise
from edgekd.train.objective import LossWeights, Objective, Signal, Signals, present


class RKDConfig(Schema):
    """Arguments of `rkd`.

    Attributes:
        distance_weight: Of the distances between pairs.
        angle_weight: Of the angles in triplets.
        angle_samples: Most samples of a batch whose angles are compared, the first ones; their number of triplets is
            cubic: 2 million of 128 samples, 134 million of 512.
    """

    distance_weight: float = Field(default=25.0, ge=0)
    angle_weight: float = Field(default=50.0, ge=0)
    angle_samples: int = Field(default=128, ge=3)


class RKD(Objective[RKDConfig]):
    """`w_d * huber(d_s, d_t) + w_a * huber(cos_s, cos_t)`, mean over pairs and over triplets.

    d[i,j] = |f_i - f_j| over the mean distance of different samples; cos[j,i,k] that of the angle at f_j between f_i
    and f_k; f the embedding; huber with delta 1.

    Deviation: of a batch larger than `angle_samples` only the first samples form triplets. Batches are shuffled, so
    that is a random choice.
    """

    name = "rkd"
    Config = RKDConfig
    needs: ClassVar = frozenset({Signal.EMBEDDING})
    t_squared = False
    default_weights = LossWeights(supervised=1.0, distill=1.0)
    formula = "w_d * huber(|f_i-f_j|_s/mean, |f_i-f_j|_t/mean) + w_a * huber(cos angle(f_i,f_j,f_k)_s, ..._t)"
    source = "Park, Kim, Lu and Cho 2019, arXiv 1904.05068"

    def forward(self, student: Signals, teacher: Signals, labels: Tensor | None) -> Tensor:
        f_s = present(student.embedding, Signal.EMBEDDING)
        f_t = present(teacher.embedding, Signal.EMBEDDING)
        first = slice(self.config.angle_samples)
        distance = self.config.distance_weight * distance_difference(f_s, f_t)
        return distance + self.config.angle_weight * angle_difference(f_s[first], f_t[first])


@precise
def distance_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """Scalar: mean Huber loss between the (N, N) distances, each divided by its own mean."""
    return F.smooth_l1_loss(_distances(student), _distances(teacher))


@precise
def angle_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """Scalar: mean Huber loss between the cosines of all N^3 angles."""
    return F.smooth_l1_loss(_angles(student), _angles(teacher))


def _distances(x: Tensor) -> Tensor:
    """(N, N), of mean 1 over pairs of different samples."""
    # The quicker form by inner products would give equal samples a small distance, and the mean would count them.
    found = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    pairs = (found > 0).sum()
    mean = found.sum() / pairs.clamp_min(1)
    return found / torch.where(pairs > 0, mean, torch.ones_like(mean))


def _angles(x: Tensor) -> Tensor:
    """(N, N, N): at [j, i, k] the cosine of the angle at x_j between x_i and x_k."""
    rays = directions(x[None, :] - x[:, None])
    return rays @ rays.transpose(1, 2)
