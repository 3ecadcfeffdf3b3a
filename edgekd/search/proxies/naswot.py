"""NASWOT: how differently a random network's activations react to different images (Mellor et al. 2021)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from edgekd.search.proxies.network import batch_statistics, check_alive
from edgekd.search.proxies.operations import ACTIVATIONS, Intercept
from edgekd.search.proxy import Batch, Proxy, ScoreStudent, Unscorable
from edgekd.search.sharing import shared

_SINGULAR = 1e-12
"""An eigenvalue that is smaller, relative to the largest, is rounding."""


class NASWOT(Proxy):
    """`log det K_H`, K_H[i, j] the number of activation units on whose side of zero images i and j agree.

    Higher for networks that tell the images of the batch apart. All activations count that hold negative values back,
    ReLU6, Hardswish, SiLU and GELU among them, whether modules or functions; a unit's bit is `its input > 0`.
    Deviation: a determinant of zero, which two images with the same code give, makes the network unscorable.
    """

    uses_weights: ClassVar[bool] = True
    formula: ClassVar[str] = "log det K_H, K_H[i, j] = units - hamming(code_i, code_j)"
    source: ClassVar[str] = "Mellor, Turner, Storkey and Crowley 2021, arXiv 2006.04647"

    def bind(self, teacher: nn.Module, batch: Batch) -> ScoreStudent:
        return lambda student: _log_determinant(*code_kernel(student, batch.images))


@shared
def code_kernel(module: nn.Module, images: Tensor) -> tuple[Tensor, int]:
    """K_H, (N, N) float64, and the number of units.

    Raises:
        Unscorable: The logits say nothing.
    """
    size = len(images)
    agreements = torch.zeros(size, size, dtype=torch.float64, device=images.device)
    units = [0]

    def listen(name: str, x: Tensor) -> None:
        # Windows and patches fold space into the first axis, samples outermost.
        if name in ACTIVATIONS and x.ndim > 1 and x.shape[0] % size == 0:
            signs = torch.where(x.reshape(size, -1) > 0, 1.0, -1.0)
            # Of P units, a code agrees in (P + <s_i, s_j>) / 2; exact in float32 up to 2^24 units.
            agreements.add_(signs @ signs.T)
            units[0] += signs.shape[1]

    with batch_statistics(module), torch.inference_mode(), Intercept(listen):
        logits = module(images)
    check_alive(logits)
    return (agreements + units[0]) / 2, units[0]


def _log_determinant(kernel: Tensor, units: int) -> float:
    if units == 0:
        raise Unscorable("It has no activation that holds negative values back.")
    eigenvalues = torch.linalg.eigvalsh(kernel)
    if bool(eigenvalues[0] <= _SINGULAR * eigenvalues[-1]):
        raise Unscorable("Its activations do not tell the images apart, or two images of the batch are the same.")
    return float(eigenvalues.log().sum())
