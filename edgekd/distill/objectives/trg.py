"""TRG: patches of images, not whole images, are the nodes whose relations the student takes over."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from edgekd.core.schema import Schema
from edgekd.distill.objectives.geometry import at_one_size, directions, precise
from edgekd.distill.objectives.kd import softened_kl
from edgekd.distill.objectives.probability import divergences
from edgekd.errors import UserError
from edgekd.train.objective import LossWeights, Objective, Signal, Signals, SignalSpec, full_precision, present


class TRGConfig(Schema):
    """Arguments of `trg`.

    Attributes:
        temperature: T of the softened probabilities.
        kd_weight: Of the softened probabilities.
        inner_weight: Of the relations among the patches of one image.
        local_weight: Of the relations of a patch to its nearest ones in the batch.
        global_weight: Of telling the teacher's answer to the same patch from those to all others.
        grid: An image has grid x grid patches; their number in a batch enters squared.
        neighbours: Share of the batch's patches that count as near.
        first_tau: Temperature of telling apart at the first step.
        last_tau: At the last one.
    """

    temperature: float = Field(default=4.0, gt=0)
    kd_weight: float = Field(default=0.9, ge=0)
    inner_weight: float = Field(default=1.0, ge=0)
    local_weight: float = Field(default=1.0, ge=0)
    global_weight: float = Field(default=0.1, ge=0)
    grid: int = Field(default=3, ge=1)
    neighbours: float = Field(default=0.05, gt=0, le=1)
    first_tau: float = Field(default=0.5, gt=0)
    last_tau: float = Field(default=0.1, gt=0)


class TRG(Objective[TRGConfig]):
    """`w_kd * kd + w_i * inner + w_l * local + w_g * global` on patches x of the last feature maps.

    inner: mean square between the softmax(X X^T / sqrt(D)) of each image. local: KL between the softmax of minus the
    squared distances, over their mean, from a patch to the teacher's nearest patches of the batch. global: InfoNCE of
    the student's patch behind a linear layer among all of the teacher's; tau falls along a straight line.

    Deviations: patches are means over a grid, not drawn at random; both graphs are compared on the teacher's nearest
    patches, so that a student who has others there is corrected; how many are near is a share, and InfoNCE takes the
    mean of its denominator, so that nothing depends on the batch's size. No code is public and the paper's numbers were
    not at hand: all weights, temperatures and sizes are ours.
    """

    name = "trg"
    Config = TRGConfig
    needs: ClassVar = frozenset({Signal.LOGITS, Signal.FEATURE_MAP})
    adapts = True
    t_squared = True
    default_weights = LossWeights(supervised=0.1, distill=1.0)
    formula = "w_kd * kd + w_i * |C_s - C_t|^2 + w_l * KL(A_t || A_s) + w_g * InfoNCE, on patches of the last map"
    source = "Zhang, Liu and He 2023, arXiv 2306.12442"

    def bind(self, student: SignalSpec, teacher: SignalSpec) -> None:
        if student.channels is None or teacher.channels is None:
            raise UserError("The objective 'trg' needs the feature maps of both networks, and one of them has none.")
        self.projection = nn.Linear(student.channels, teacher.channels, bias=False)
        if student.channels == teacher.channels:
            nn.init.eye_(self.projection.weight)

    def forward(self, student: Signals, teacher: Signals, labels: Tensor | None) -> Tensor:
        given = self.config
        x_s, x_t = patches(
            present(student.feature_map, Signal.FEATURE_MAP),
            present(teacher.feature_map, Signal.FEATURE_MAP),
            given.grid,
        )
        tau = given.first_tau + (given.last_tau - given.first_tau) * self.progress.share
        loss = given.kd_weight * softened_kl(student.logits, teacher.logits, given.temperature)
        loss = loss + given.inner_weight * inner_difference(x_s, x_t)
        loss = loss + given.local_weight * neighbour_difference(x_s, x_t, given.neighbours)
        return loss + given.global_weight * self._telling_apart(x_s, x_t, tau)

    def _telling_apart(self, x_s: Tensor, x_t: Tensor, tau: float) -> Tensor:
        with torch.autocast(device_type=x_s.device.type, enabled=False):
            u, v = directions(self.projection(x_s.flatten(0, 1))), directions(x_t.flatten(0, 1))
            similarities = u @ v.T / tau
            # The mean instead of the sum: a constant less, and no growth with the batch.
            return -similarities.log_softmax(1).diagonal().mean() - math.log(len(u))


def patches(student: Tensor, teacher: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """(N, T, C) and (N, T, D): means over at most `grid` x `grid` cells of two batches of maps (N, C, H, W)."""
    f_s, f_t = at_one_size(full_precision(student), full_precision(teacher))
    cells = (min(grid, f_s.shape[2]), min(grid, f_s.shape[3]))
    return _cells(f_s, cells), _cells(f_t, cells)


@precise
def inner_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """Scalar: mean square between the (T, T) attention among the patches of each image, of (N, T, C)."""
    return F.mse_loss(_attention(student), _attention(teacher))


def neighbour_difference(student: Tensor, teacher: Tensor, share: float) -> Tensor:
    """Scalar: KL between the teacher's and the student's weights of the teacher's nearest patches, mean over patches.

    Args:
        student: (N, T, C).
        teacher: (N, T, D).
        share: Of the N * T patches that count as near, the patch itself among them.
    """
    count = max(2, round(share * student.shape[0] * student.shape[1]))
    with torch.autocast(device_type=student.device.type, enabled=False):
        d_s, d_t = _squared_distances(student.flatten(0, 1)), _squared_distances(teacher.flatten(0, 1))
        near = d_t.topk(min(count, len(d_t)), dim=1, largest=False).indices
        log_s, log_t = ((-d.gather(1, near)).log_softmax(1) for d in (d_s, d_t))
        return divergences(log_t, log_s).mean()


def _cells(maps: Tensor, cells: tuple[int, int]) -> Tensor:
    return F.adaptive_avg_pool2d(maps, cells).flatten(2).transpose(1, 2)


def _attention(x: Tensor) -> Tensor:
    return torch.softmax(x @ x.transpose(1, 2) / x.shape[2] ** 0.5, dim=2)


def _squared_distances(x: Tensor) -> Tensor:
    """(R, R) squared distances of rows (R, C) over their mean; zeros when all rows are equal."""
    squares = x.square().sum(1)
    found = (squares[:, None] + squares[None, :] - 2 * x @ x.T).clamp_min(0)
    mean = found.mean()
    return found / torch.where(mean > 0, mean, torch.ones_like(mean))
