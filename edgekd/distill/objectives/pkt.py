"""PKT: match the probability with which each sample would choose each other one as its neighbour."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from edgekd.core.schema import Schema
from edgekd.distill.objectives.geometry import directions, gram, precise
from edgekd.train.objective import LossWeights, Objective, Signal, Signals, present

AUTHORS_BATCH = 64
_EPSILON = 1e-7


class PKTConfig(Schema):
    """`pkt` has no arguments; its weight is `distill_weight`."""


class PKT(Objective[PKTConfig]):
    """`mean_i KL(p_t[i,:] || p_s[i,:])`, p[i,j] = (1 + cos(f_i, f_j)) / 2 over its sum in row i; f the embedding.

    Deviations: the authors also divide by N, which weakens the loss in larger batches; here it is the mean over
    samples, and the default weight is their 30000 at their batch of 64. As in their code a sample is a neighbour of
    itself.
    """

    name = "pkt"
    Config = PKTConfig
    needs: ClassVar = frozenset({Signal.EMBEDDING})
    t_squared = False
    default_weights = LossWeights(supervised=1.0, distill=30000 / AUTHORS_BATCH)
    formula = "mean_i KL(p_t[i,:] || p_s[i,:]), p[i,j] ~ (1 + cos(f_i, f_j)) / 2"
    source = "Passalis and Tefas 2018, arXiv 1803.10837"

    def forward(self, student: Signals, teacher: Signals, labels: Tensor | None) -> Tensor:
        return neighbour_divergence(
            present(student.embedding, Signal.EMBEDDING), present(teacher.embedding, Signal.EMBEDDING)
        )


@precise
def neighbour_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Scalar `mean_i KL(p_t[i,:] || p_s[i,:])` of embeddings (N, D)."""
    p_s, p_t = _neighbours(student), _neighbours(teacher)
    # Opposite samples have probability 0 and would make the logarithm infinite.
    ratio = (p_t + _EPSILON) / (p_s + _EPSILON)
    return (p_t * ratio.log()).sum(1).mean()


def _neighbours(x: Tensor) -> Tensor:
    """(N, N): each row the probabilities of one sample's neighbours."""
    similarity = (1 + gram(directions(x))) / 2
    return similarity / similarity.sum(1, keepdim=True)
