"""Importances that read nothing but the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from edgekd.nn.channels.groups import ChannelGroup
from edgekd.nn.channels.importance import WeightNorm, has_scale, unit_sums
from edgekd.prune.importance import Evidence, Importance


class _Magnitude(Importance):
    """Sums of a power of the weights of every layer in the group."""

    norm: ClassVar[WeightNorm]

    def scores(self, evidence: Evidence, groups: Sequence[ChannelGroup]) -> dict[str, Tensor]:
        return {group.name: unit_sums(evidence.module, group, self.norm) for group in groups}


class L2(_Magnitude):
    """The squared weights that make unit u or read it."""

    name = "l2"
    norm = "l2"
    formula = "sum over members of ||W[u]||_2^2"
    source = "Fang et al. 2023 (DepGraph), arXiv 2301.12900"


class L1(_Magnitude):
    """The absolute weights that make unit u or read it."""

    name = "l1"
    norm = "l1"
    formula = "sum over members of ||W[u]||_1"
    source = "Li et al. 2017, arXiv 1608.08710, summed over the group"


class BatchNormScale(_Magnitude):
    """The scales that BatchNorm gives unit u. A group without BatchNorm is scored by `l2`, which `remarks` says."""

    name = "bn"
    norm = "bn"
    formula = "sum over BatchNorm members of |gamma_u|"
    source = "Liu et al. 2017 (Network Slimming), arXiv 1708.06519"

    def remarks(self, evidence: Evidence, groups: Sequence[ChannelGroup]) -> tuple[str, ...]:
        unscaled = sum(not has_scale(evidence.module, group) for group in groups)
        return (f"{unscaled} groups have no BatchNorm and were ranked by l2 instead.",) if unscaled else ()


class Lamp(Importance):
    """The share of u in the squared weights of all units at least as large: what is left if all smaller ones went.

    The largest unit of every group scores 1, so no group is emptied by a comparison across groups, and groups whose
    weights are spread evenly lose more. Deviation: by units of a group; the paper scores single weights of a layer.
    """

    name = "lamp"
    comparable = True
    formula = "l2_u / sum of l2_v over the units v with l2_v >= l2_u"
    source = "Lee et al. 2021 (LAMP), arXiv 2010.07611"

    def scores(self, evidence: Evidence, groups: Sequence[ChannelGroup]) -> dict[str, Tensor]:
        return {group.name: _shares_of_larger(unit_sums(evidence.module, group, "l2")) for group in groups}


def _shares_of_larger(power: Tensor) -> Tensor:
    """(units,) in [0, 1]; equal powers have equal shares."""
    larger = torch.stack([power[power >= value].sum() for value in power])
    return torch.where(larger > 0, power / larger, torch.zeros_like(power))
