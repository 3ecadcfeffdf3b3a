"""Sums of the weights of each unit of a group, which rank the units where nothing but the weights is known.

    l2:  I_u = sum over members of ||W[u]||_2^2        (Fang et al. 2023, DepGraph, arXiv 2301.12900)
    l1:  I_u = sum over members of ||W[u]||_1          (Li et al. 2017, arXiv 1608.08710)
    bn:  I_u = sum over BatchNorm members of |gamma_u|  (Liu et al. 2017, Network Slimming, arXiv 1708.06519)

`W[u]` is what a convolution or linear layer of the group makes of unit u, or reads of it. Importances that look at
images or at a teacher are in `edgekd.prune.importances`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from edgekd.nn.channels.apply import is_channelwise, is_depthwise, part_at
from edgekd.nn.channels.groups import ChannelGroup, Member

WeightNorm = Literal["l2", "l1", "bn"]


def unit_sums(module: nn.Module, group: ChannelGroup, norm: WeightNorm) -> Tensor:
    """(units,) float64 sums over the members of the group; 0 for a unit whose weights are all 0.

    A group without BatchNorm is scored by `l2` where `bn` was asked for: see `has_scale`.
    """
    by_scale = norm == "bn" and has_scale(module, group)
    scores = torch.zeros(group.units, dtype=torch.float64)
    for member in group.members:
        values = _scales(module, member) if by_scale else _weights(module, member)
        if values is not None:
            power = values.abs() if by_scale or norm == "l1" else values.square()
            scores.index_add_(0, member.units, power.flatten(1).sum(1)[member.channels])
    return scores


def has_scale(module: nn.Module, group: ChannelGroup) -> bool:
    """Whether a BatchNorm with a learned scale stands in the group."""
    return any(_scales(module, member) is not None for member in group.members)


def _scales(module: nn.Module, member: Member) -> Tensor | None:
    part = part_at(module, member.path)
    if isinstance(part, _NormBase) and part.affine:
        return part.weight.detach().double().unsqueeze(1)
    return None


def _weights(module: nn.Module, member: Member) -> Tensor | None:
    """The weight with the member's channels as its first axis; None for parts that only scale or shift."""
    part = part_at(module, member.path)
    if not isinstance(part, nn.Conv2d | nn.Linear) or (is_channelwise(part) and not is_depthwise(part)):
        return None
    weight = part.weight.detach().double()
    return weight.transpose(0, 1) if member.axis == "in" and not is_depthwise(part) else weight
