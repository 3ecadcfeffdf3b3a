"""DisWOT: how alike a random student and a random teacher see one batch (Dong, Li and Wei 2023, CVPR).

    score = -(||Gc_T - Gc_S||_F + ||Ac_T - Ac_S||_F)

Gc is the K x K correlation of class activation maps (classifier weights times the last feature map), Ac the N x N
correlation of the samples' feature maps; both are Gram matrices divided by their Frobenius norm, so that teacher and
student may differ in width and resolution.

This is the form of the paper. The authors' code computes another one, which needs equal widths and compares channels
that have nothing to do with each other. Deviations: where the classifier does not read the feature map itself (a 1x1
head stands between them, or there is no map) its own input takes the place of the map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgekd.nn.taps import EMBEDDING, FEATURE_MAP, Taps, find_tap_points
from edgekd.search.proxy import Batch, Proxy, ScoreStudent


@dataclass(frozen=True, eq=False)
class _View:
    """What is compared: class correlation (K, K) and sample correlation (N, N)."""

    classes: Tensor
    samples: Tensor


class DisWOT(Proxy):
    """`-(M_semantic + M_relation)`: 0 for a student that equals the teacher, negative for all others."""

    uses_weights: ClassVar[bool] = True
    uses_teacher: ClassVar[bool] = True
    formula: ClassVar[str] = "-(||Gc_T - Gc_S||_F + ||Ac_T - Ac_S||_F)"
    source: ClassVar[str] = "Dong, Li and Wei 2023, CVPR"

    def bind(self, teacher: nn.Module, batch: Batch) -> ScoreStudent:
        images = batch.images
        reference = _view(teacher, images)

        def score(student: nn.Module) -> float:
            view = _view(student, images)
            semantic = torch.linalg.norm(view.classes - reference.classes)
            relation = torch.linalg.norm(view.samples - reference.samples)
            return -float(semantic + relation)

        return score


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


def _view(module: nn.Module, images: Tensor) -> _View:
    channels, height, width = images.shape[1:]
    points = find_tap_points(module, (channels, height, width))
    want = {EMBEDDING} if points.feature_map is None else {EMBEDDING, FEATURE_MAP}
    taps = Taps(module, want, (channels, height, width))
    with _batch_statistics(module), torch.inference_mode():
        seen = taps(images)
    assert seen.embedding is not None
    embedding = seen.embedding[:, :, None, None]
    maps = embedding if seen.feature_map is None else seen.feature_map
    weight = module.get_parameter(f"{points.classifier}.weight").detach().flatten(1)
    activation = maps if maps.shape[1] == weight.shape[1] else embedding
    class_maps = torch.einsum("kc,nchw->knhw", weight, activation)
    return _View(classes=correlation(class_maps.flatten(1)), samples=correlation(maps.flatten(1)))


class _batch_statistics:  # noqa: N801 - reads as a statement
    """Evaluation mode, except that BatchNorm normalises by the batch: random networks have no running statistics."""

    def __init__(self, module: nn.Module) -> None:
        self.before = [(part, part.training) for part in module.modules()]

    def __enter__(self) -> None:
        for part, _ in self.before:
            part.training = isinstance(part, _BatchNorm)

    def __exit__(self, *_: object) -> None:
        for part, training in self.before:
            part.training = training
