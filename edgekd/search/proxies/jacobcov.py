"""Jacobian covariance: how differently a random network responds to changes of different images."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from edgekd.search.proxies.network import batch_statistics, check_alive
from edgekd.search.proxy import Batch, Proxy, ScoreStudent, Unscorable

_K = 1e-5


class JacobCov(Proxy):
    """`-sum_i(log(v_i + k) + 1 / (v_i + k))`, v the eigenvalues of the correlation of the rows of J, k = 1e-5.

    Row n of J is the gradient of the summed logits with respect to image n. The value is largest, -N, for images whose
    gradients are uncorrelated.
    """

    uses_weights: ClassVar[bool] = True
    formula: ClassVar[str] = "-sum_i(log(v_i + k) + 1/(v_i + k)), v = eig(corr(d sum(logits) / d image_n)), k = 1e-5"
    source: ClassVar[str] = (
        "Mellor et al. 2020, arXiv 2006.04647v1; as in Abdelfattah, Mehrotra, Dudziak and Lane 2021, arXiv 2101.08134"
    )

    def bind(self, teacher: nn.Module, batch: Batch) -> ScoreStudent:
        return lambda student: jacobian_score(input_jacobian(student, batch.images))


def input_jacobian(module: nn.Module, images: Tensor) -> Tensor:
    """(N, C*H*W): the gradient of the sum of all logits with respect to each image.

    Raises:
        Unscorable: The logits say nothing.
    """
    seen = images.detach().clone().requires_grad_()
    with batch_statistics(module), torch.enable_grad():
        logits = module(seen)
        check_alive(logits)
        (gradient,) = torch.autograd.grad(logits.sum(), seen)
    return gradient.flatten(1)


def jacobian_score(jacobian: Tensor) -> float:
    """The score of a Jacobian (N, D).

    Raises:
        Unscorable: The gradient of an image is constant, so that it correlates with nothing.
    """
    rows = jacobian.double()
    rows = rows - rows.mean(1, keepdim=True)
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    if not bool((norms > 0).all()):
        raise Unscorable("Its logits do not change with the image: no gradient reaches the input.")
    rows = rows / norms
    eigenvalues = torch.linalg.eigvalsh(rows @ rows.T).clamp_min(0) + _K
    return -float((eigenvalues.log() + 1 / eigenvalues).sum())
