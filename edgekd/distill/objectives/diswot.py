"""DisWOT-dagger: softened probabilities, and the two relations by which DisWOT searches a student."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from edgekd.core.schema import Schema
from edgekd.distill.objectives.geometry import gram, precise
from edgekd.distill.objectives.kd import softened_kl
from edgekd.train.objective import LossWeights, Objective, Signal, Signals, present


class DisWOTConfig(Schema):
    """Arguments of `diswot`.

    Attributes:
        temperature: T of the softened probabilities.
        kd_weight: Of the softened probabilities.
        semantic_weight: Of the distance between class correlations; None is the paper's 1 / K^2.
        relation_weight: Of the distance between sample correlations; None is the paper's 1 / N^2, which weakens it in
            larger batches. Both distances are at most sqrt(2), so the paper's weights make them small beside the rest.
    """

    temperature: float = Field(default=4.0, gt=0)
    kd_weight: float = Field(default=0.9, ge=0)
    semantic_weight: float | None = Field(default=None, ge=0)
    relation_weight: float | None = Field(default=None, ge=0)


class DisWOT(Objective[DisWOTConfig]):
    """`w_kd * kd + |Gc_s - Gc_t|_F / K^2 + |Ac_s - Ac_t|_F / N^2`: the part of `CE + KL + L_Ms + L_Mr` beside CE.

    Gc is the K x K Gram matrix of the class activation maps (classifier weights times the last feature map, over all
    samples and pixels), Ac the N x N one of the samples' feature maps; both are divided by their Frobenius norm, so
    that networks may differ in width. Resolutions may differ too: only Gram matrices are compared. The weights of CE
    and KL, 0.1 and 0.9 at T = 4, are those of the authors' training script.

    The networks need a classifier that reads the pooled feature map; otherwise the classes have no activation maps.
    """

    name = "diswot"
    Config = DisWOTConfig
    needs: ClassVar = frozenset({Signal.LOGITS, Signal.FEATURE_MAP, Signal.CLASS_MAPS})
    t_squared = True
    default_weights = LossWeights(supervised=0.1, distill=1.0)
    formula = "w_kd * T^2 * KL(p_t || p_s) + |Gc_s - Gc_t|_F / K^2 + |Ac_s - Ac_t|_F / N^2"
    source = "Dong, Li and Wei 2023, arXiv 2303.15678"

    def forward(self, student: Signals, teacher: Signals, labels: Tensor | None) -> Tensor:
        samples, classes = student.logits.shape
        semantic = correlation_distance(*(_rows_by_class(signals) for signals in (student, teacher)))
        relation = correlation_distance(*(_rows_by_sample(signals) for signals in (student, teacher)))
        given = self.config
        w_semantic = 1 / classes**2 if given.semantic_weight is None else given.semantic_weight
        w_relation = 1 / samples**2 if given.relation_weight is None else given.relation_weight
        kl = softened_kl(student.logits, teacher.logits, given.temperature)
        return given.kd_weight * kl + w_semantic * semantic + w_relation * relation


@precise
def correlation_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Scalar: Frobenius distance of the Gram matrices of rows (R, D), each at Frobenius norm 1; D may differ."""
    distance: Tensor = torch.linalg.vector_norm(_correlation(student) - _correlation(teacher))
    return distance


def _correlation(rows: Tensor) -> Tensor:
    """(R, R) of norm 1; zeros when all rows are zero."""
    found = gram(rows)
    norm = torch.linalg.vector_norm(found)
    correlation: Tensor = found / torch.where(norm > 0, norm, torch.ones_like(norm))
    return correlation


def _rows_by_class(signals: Signals) -> Tensor:
    """(K, N * H * W)."""
    return present(signals.class_maps, Signal.CLASS_MAPS).transpose(0, 1).flatten(1)


def _rows_by_sample(signals: Signals) -> Tensor:
    """(N, C * H * W)."""
    return present(signals.feature_map, Signal.FEATURE_MAP).flatten(1)
