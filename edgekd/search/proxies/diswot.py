"""DisWOT, the paper's form: how alike a random student and a random teacher see one batch.

    score = -(||Gc_T - Gc_S||_F + ||Ac_T - Ac_S||_F)

Gc is the K x K correlation of class activation maps (classifier weights times the last feature map), Ac the N x N
correlation of the samples' feature maps; both are Gram matrices divided by their Frobenius norm, so that teacher and
student may differ in width and resolution.

The authors' code computes other expressions: see `edgekd.search.proxies.diswot_code`. The two terms differ in size, so
their plain sum follows one of them; `diswot-semantic+diswot-relation` adds the ranks instead. Deviation: where the
classifier does not read the feature map itself (a 1x1 head stands between them, or there is no map) its own input takes
the place of the map.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from edgekd.search.proxies.views import View, check_classes, view
from edgekd.search.proxy import Batch, Proxy, ScoreStudent

_SOURCE = "Dong, Li and Wei 2023, arXiv 2303.15678"


class DisWOT(Proxy):
    """`-(M_semantic + M_relation)`: 0 for a student that equals the teacher, negative for all others."""

    uses_weights: ClassVar[bool] = True
    uses_teacher: ClassVar[bool] = True
    formula: ClassVar[str] = "-(||Gc_T - Gc_S||_F + ||Ac_T - Ac_S||_F)"
    source: ClassVar[str] = _SOURCE

    def bind(self, teacher: nn.Module, batch: Batch) -> ScoreStudent:
        return _negated_distance(teacher, batch, class_correlation, sample_correlation)


class DisWOTSemantic(Proxy):
    """`-M_semantic`: whether student and teacher see the classes in the same places."""

    uses_weights: ClassVar[bool] = True
    uses_teacher: ClassVar[bool] = True
    formula: ClassVar[str] = "-||Gc_T - Gc_S||_F, Gc the K x K correlation of class activation maps"
    source: ClassVar[str] = _SOURCE

    def bind(self, teacher: nn.Module, batch: Batch) -> ScoreStudent:
        return _negated_distance(teacher, batch, class_correlation)


class DisWOTRelation(Proxy):
    """`-M_relation`: whether student and teacher find the same samples alike."""

    uses_weights: ClassVar[bool] = True
    uses_teacher: ClassVar[bool] = True
    formula: ClassVar[str] = "-||Ac_T - Ac_S||_F, Ac the N x N correlation of feature maps"
    source: ClassVar[str] = _SOURCE

    def bind(self, teacher: nn.Module, batch: Batch) -> ScoreStudent:
        return _negated_distance(teacher, batch, sample_correlation)


def correlation(rows: Tensor) -> Tensor:
    """The Gram matrix of the rows over its Frobenius norm.

    Args:
        rows: (R, D).

    Returns:
        (R, R) float64, of norm 1; zeros when all rows are zero.
    """
    gram = rows.double() @ rows.double().T
    normalised: Tensor = gram / torch.linalg.norm(gram).clamp_min(torch.finfo(torch.float64).tiny)
    return normalised


def class_correlation(seen: View) -> Tensor:
    """Gc, (K, K)."""
    maps = torch.einsum("kc,nchw->knhw", seen.weight, seen.read)
    return correlation(maps.flatten(1))


def sample_correlation(seen: View) -> Tensor:
    """Ac, (N, N)."""
    return correlation(seen.features.flatten(1))


def _negated_distance(teacher: nn.Module, batch: Batch, *parts: Callable[[View], Tensor]) -> ScoreStudent:
    """Scores by the negated sum of the Frobenius distances between the parts of the two views."""
    seen = view(teacher, batch.images)
    references = [part(seen) for part in parts]

    def score(student: nn.Module) -> float:
        found = view(student, batch.images)
        check_classes(found.weight, seen.weight)
        distances = [torch.linalg.norm(part(found) - other) for part, other in zip(parts, references, strict=True)]
        return -float(sum(distances))

    return score
