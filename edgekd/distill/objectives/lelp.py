"""LELP: with few classes a teacher says little, so each class is split along the teacher's own embeddings."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from edgekd.core.schema import Schema
from edgekd.data.dataset import UNLABELLED
from edgekd.distill.objectives.probability import log_probabilities
from edgekd.errors import UserError
from edgekd.train.objective import (
    LossWeights,
    Objective,
    Signal,
    Signals,
    SignalSpec,
    Survey,
    full_precision,
    present,
)

_MOST_MOMENTS = 1 << 27
"""K * D * D float64 numbers while the directions are sought: 1 GiB."""
_RELATIVE_RANK = 1e-6


class LELPConfig(Schema):
    """Arguments of `lelp`.

    Attributes:
        directions: r: how many directions of each class are split, in two sides each.
        temperature: Of the split: below 1 an embedding belongs to one side rather than to both.
    """

    directions: int = Field(default=2, ge=1)
    temperature: float = Field(default=1.0, gt=0)


class LELP(Objective[LELPConfig]):
    """`KL(q || p)` over classes k and sides j: q(k, j) = p_t(k) * softmax_j(+-z_kr / tau), p(k, j) = p_s(k) * h(f)_kj.

    z_kr is the teacher's embedding along principal direction r of class k, less the class mean, over its standard
    deviation; what the teacher's classifier reads is projected out first, for the logits tell that already. By the
    chain rule the loss is `KL(p_t || p_s)` plus, weighted by p_t(k), the divergences among the sides of each class.

    Deviations: the authors' student has one output for each side and sums them up; here its classifier gives p_s(k) and
    a training-only layer on its embedding the sides within each class. That is the same model of the joint
    probabilities, and nothing is left to fold away when deployed. How many directions, which scale and which weights
    the authors use was not at hand: those are ours.
    """

    name = "lelp"
    Config = LELPConfig
    needs: ClassVar = frozenset({Signal.LOGITS, Signal.EMBEDDING, Signal.LABELS})
    needs_of_teacher: ClassVar = frozenset({Signal.LOGITS, Signal.EMBEDDING, Signal.CLASSIFIER})
    takes_unlabelled = True
    adapts = True
    t_squared = False
    default_weights = LossWeights(supervised=0.1, distill=0.9)
    formula = "KL(p_t || p_s) + sum_k p_t(k) * KL(softmax(+-z_k / tau) || h(f_s)_k), z_k: class-wise PCA of f_t"
    source = "Loo, Iliopoulos, Hu and Vee 2024, arXiv 2409.20449"

    means: Tensor
    directions: Tensor

    def bind(self, student: SignalSpec, teacher: SignalSpec) -> None:
        if student.width is None or teacher.width is None:
            raise UserError("The objective 'lelp' needs the embeddings of both networks, and one of them has none.")
        if teacher.classes * teacher.width**2 > _MOST_MOMENTS:
            raise UserError(
                f"The objective 'lelp' is for few classes: {teacher.classes} covariances of width {teacher.width} need "
                f"{teacher.classes * teacher.width**2 / 2**27:.1f} GiB.",
                hint="use kd or dist, which say enough with that many classes",
            )
        sides = 2 * self.config.directions
        self.head = nn.Linear(student.width, teacher.classes * sides)
        self.register_buffer("means", torch.zeros(teacher.classes, teacher.width))
        self.register_buffer("directions", torch.zeros(teacher.classes, self.config.directions, teacher.width))

    def prepare(self, survey: Survey) -> None:
        means, covariances, read = _moments(survey, len(self.means))
        self.means.copy_(means)
        self.directions.copy_(class_directions(covariances, read, self.config.directions))

    def forward(self, student: Signals, teacher: Signals, labels: Tensor | None) -> Tensor:
        f_s, f_t = present(student.embedding, Signal.EMBEDDING), present(teacher.embedding, Signal.EMBEDDING)
        log_q = side_log_probabilities(f_t, self.means, self.directions, self.config.temperature)
        log_p = full_precision(self.head(full_precision(f_s))).reshape(log_q.shape).log_softmax(2)
        within = (log_q.exp() * (log_q - log_p)).sum(2)
        log_t, log_s = log_probabilities(teacher.logits), log_probabilities(student.logits)
        joint: Tensor = log_t.exp() * (log_t - log_s + within)
        return joint.sum(1).mean()


def side_log_probabilities(embedding: Tensor, means: Tensor, directions: Tensor, temperature: float) -> Tensor:
    """(N, K, 2 r): log-probabilities of the sides of each class.

    Args:
        embedding: (N, D).
        means: (K, D).
        directions: (K, r, D), each over the standard deviation along it.
        temperature: tau.
    """
    centred = full_precision(embedding)[:, None, :] - means
    along = torch.einsum("nkd,krd->nkr", centred, directions) / temperature
    return torch.cat([along, -along], dim=2).log_softmax(2)


def class_directions(covariances: Tensor, read: Tensor, count: int) -> Tensor:
    """(K, count, D): the principal directions of each class in the null space of what the classifier reads, each over
    its standard deviation; zero where a class does not vary.

    Where the classifier leaves fewer than `count` directions, nothing is projected out.

    Args:
        covariances: (K, D, D).
        read: (K, D) weights of the classifier. Only their differences count: a softmax ignores a common part.
        count: At most D; further directions are zero.
    """
    classes, width = read.shape
    _, spread, axes_read = torch.linalg.svd(read - read.mean(0), full_matrices=False)
    basis = axes_read[spread > _RELATIVE_RANK * spread.max()]
    if width - len(basis) >= count:
        null = torch.eye(width, dtype=read.dtype, device=read.device) - basis.T @ basis
        covariances = null @ covariances @ null
    variances, vectors = torch.linalg.eigh(covariances)
    kept = min(count, width)
    top = variances[:, -kept:].flip(1)
    axes = vectors[:, :, -kept:].flip(2).transpose(1, 2)
    varies = top > _RELATIVE_RANK * variances[:, -1:].clamp_min(0)
    scale = torch.where(varies, top.clamp_min(torch.finfo(top.dtype).tiny).rsqrt(), torch.zeros_like(top))
    out = torch.zeros(classes, count, width, dtype=axes.dtype, device=axes.device)
    out[:, :kept] = axes * scale[:, :, None]
    return out


def _moments(survey: Survey, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Means (K, D) and covariances (K, D, D) of the teacher's embedding by class, its classifier (K, D); in float64.

    Of the images with a label.
    """
    counts = torch.zeros(classes, dtype=torch.float64)
    sums = squares = weight = torch.zeros(0, dtype=torch.float64)
    for batch in survey.batches():
        f = present(batch.teacher.embedding, Signal.EMBEDDING).cpu().double()
        y = present(batch.labels, Signal.LABELS).cpu()
        f, y = f[y != UNLABELLED], y[y != UNLABELLED]
        if not len(sums):
            sums = torch.zeros(classes, f.shape[1], dtype=torch.float64)
            squares = torch.zeros(classes, f.shape[1], f.shape[1], dtype=torch.float64)
            weight = present(batch.teacher.classifier, Signal.CLASSIFIER).weight.cpu().double()
        for k in range(classes):
            rows = f[y == k]
            sums[k] += rows.sum(0)
            squares[k] += rows.T @ rows
        counts += torch.bincount(y, minlength=classes)
    share = counts.clamp_min(1)
    means = sums / share[:, None]
    return means, squares / share[:, None, None] - means[:, :, None] * means[:, None, :], weight
