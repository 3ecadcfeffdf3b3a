"""Networks that train with more branches than they deploy: the exact step from one form to the other.

A block that can be deployed as something cheaper is `Fusable`. Export, and whatever predicts the cost of the
deployed network, call `reparameterised`; training and pruning work on the branches. A stage whose result holds for the
deployed weights only (quantized distillation) puts the edit `FUSE` into the recipe and trains the fused form.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from edgekd.core.recipe import Edit

FUSE = Edit(kind="fuse")
"""The edit that rebuilds a network in its deployed form."""


class Fusable(nn.Module, ABC):
    """A module that a cheaper one can stand for in evaluation mode."""

    @abstractmethod
    def fused(self) -> nn.Module:
        """A module of the same function in evaluation mode, with weights of its own; this one is left as it was."""


def fusable_blocks(module: nn.Module) -> tuple[str, ...]:
    """Paths of the blocks inside that would be fused, outermost ones only; empty when both forms are one."""
    paths: list[str] = []
    for path, part in module.named_modules():
        if path and isinstance(part, Fusable) and not any(path.startswith(f"{outer}.") for outer in paths):
            paths.append(path)
    return tuple(paths)


def reparameterised(module: nn.Module) -> nn.Module:
    """The network as it is deployed: a copy with every fusable block fused, or `module` itself when there is none.

    Args:
        module: Left as it was. Its outputs in evaluation mode are those of the result, up to rounding.
    """
    if not fusable_blocks(module):
        return module
    deployed = copy.deepcopy(module)
    fuse_(deployed)
    return deployed


def fuse_(module: nn.Module) -> None:
    """Replaces every fusable block inside the module by its fused form."""
    for path in fusable_blocks(module):
        block = module.get_submodule(path)
        assert isinstance(block, Fusable)
        parent, _, name = path.rpartition(".")
        setattr(module.get_submodule(parent), name, block.fused().train(block.training))


def folded_norm(weight: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Kernel and bias of the convolution that equals `norm(conv(x))` in evaluation mode, both float64.

    `gamma (W x - mu) / sigma + beta = (gamma / sigma) W x + (beta - gamma mu / sigma)` with
    `sigma = sqrt(var + eps)`; float64, for sums of several of them round once, at the end.

    Args:
        weight: (C, C_in, k, k), of a convolution without bias.
        norm: Over its C outputs, affine and with running statistics.
    """
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None
    assert var is not None
    scale = norm.weight.detach().double() / torch.sqrt(var.double() + norm.eps)
    kernel = weight.detach().double() * scale[:, None, None, None]
    return kernel, norm.bias.detach().double() - mean.double() * scale
