"""DIST: match relations between classes and between samples, not exact probabilities."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from edgekd.core.schema import Schema
from edgekd.train.objective import LossWeights, Objective, Signal, Signals, full_precision

_EPSILON = 1e-8


class DISTConfig(Schema):
    """Arguments of `dist`.

    Attributes:
        temperature: tau; 4 for CIFAR, 1 for ImageNet.
        beta: Weight of the relation between the classes of a sample.
        gamma: Weight of the relation between the samples of a class; its statistics want batches of 64 or more.
    """

    temperature: float = Field(default=4.0, gt=0)
    beta: float = Field(default=1.0, ge=0)
    gamma: float = Field(default=1.0, ge=0)


class DIST(Objective[DISTConfig]):
    """`tau^2 * (beta * (1 - mean_i rho(row_i)) + gamma * (1 - mean_k rho(column_k)))`, rho the Pearson correlation.

    Rows and columns of softmax(s / tau) against those of softmax(t / tau). The factor tau^2 is in the authors' code and
    not in the paper's listing. A batch of one sample has no column relation; that term is left out.
    """

    name = "dist"
    Config = DISTConfig
    needs: ClassVar = frozenset({Signal.LOGITS})
    t_squared = True
    default_weights = LossWeights(supervised=1.0, distill=2.0)
    formula = "tau^2 * (beta * (1 - mean_i rho(p_s[i,:], p_t[i,:])) + gamma * (1 - mean_k rho(p_s[:,k], p_t[:,k])))"
    source = "Huang, You, Wang, Qian and Xu 2022, arXiv 2205.10536"

    def forward(self, student: Signals, teacher: Signals, labels: Tensor | None) -> Tensor:
        inter, intra = relation_terms(student.logits, teacher.logits, self.config.temperature)
        return self.config.beta * inter + self.config.gamma * intra


def relation_terms(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Scalars `tau^2 * (1 - mean rho)` over the rows and over the columns of the softened probabilities."""
    p_s = torch.softmax(full_precision(student) / temperature, dim=1)
    p_t = torch.softmax(full_precision(teacher) / temperature, dim=1)
    scale = temperature**2
    inter = scale * (1 - _correlation(p_s, p_t).mean())
    if len(p_s) < 2:
        return inter, torch.zeros_like(inter)
    return inter, scale * (1 - _correlation(p_s.T, p_t.T).mean())


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """(R,) Pearson correlation of each of R rows; 0 for a row without variance."""
    a = a - a.mean(1, keepdim=True)
    b = b - b.mean(1, keepdim=True)
    norms: Tensor = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    return (a * b).sum(1) / (norms + _EPSILON)
