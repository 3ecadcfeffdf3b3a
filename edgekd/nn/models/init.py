"""Weight initialisation that our architectures share."""

from __future__ import annotations

from torch import nn


def init_convolutions_(module: nn.Module) -> None:
    """Draws every convolution from N(0, 2 / fan_out) (He et al. 2015, arXiv 1502.01852).

    The scale of the last BatchNorm in a residual branch stays at 1: starting it at 0 trains well, and makes every
    branch of an untrained network dead, so that a training-free proxy could not tell two students apart.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
