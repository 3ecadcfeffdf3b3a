"""Grouped convolutions: whole groups of the convolution leave, with the layers that make and read their channels.

A graph of single channels sees two groups of channels, one on each side. They are joined here: units that share a group
of the convolution, on either side, become one. The proof decides as for any other group.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgekd.nn.channels.apply import is_grouped
from edgekd.nn.channels.groups import Axis, ChannelGroup, Member


def joined(module: nn.Module, groups: Sequence[ChannelGroup]) -> list[ChannelGroup]:
    """The groups, with those on both sides of a grouped convolution in one, named after it.

    Args:
        module: Holds the members' paths.
        groups: Those at a convolution of which a side is not known whole stay as they are.
    """
    convolutions = {path: part for path, part in module.named_modules() if is_grouped(part)}
    left = list(groups)
    for path, part in convolutions.items():
        assert isinstance(part, nn.Conv2d)
        near = [group for group in left if any(member.path == path for member in group.members)]
        if near and (one := _one(path, part, near)) is not None:
            left[left.index(near[0])] = one
            left = [group for group in left if group not in near]
    return left


def leaves_whole(part: nn.Conv2d, member: Member) -> bool:
    """Whether each unit of a member at a grouped convolution stands for whole groups of it."""
    if member.axis == "in":
        return False
    places = _places(part, "out", member.channels)
    pairs = torch.unique(torch.stack([places, member.units]), dim=1)
    counts = torch.bincount(places)
    whole = bool((counts[counts > 0] == part.out_channels // part.groups).all())
    return whole and pairs.shape[1] == len(torch.unique(places))


def _one(path: str, part: nn.Conv2d, near: Sequence[ChannelGroup]) -> ChannelGroup | None:
    """The groups at a convolution as one; None where a side is not known whole, or units would differ in width."""
    starts = torch.tensor([0, *(group.units for group in near)]).cumsum(0).tolist()
    ends: dict[Axis, list[tuple[Tensor, Tensor]]] = {"in": [], "out": []}
    for start, group in zip(starts, near, strict=False):
        for member in group.members:
            if member.path == path:
                ends[member.axis].append((member.units + start, _places(part, member.axis, member.channels)))
    counts = {axis: sum(len(units) for units, _ in found) for axis, found in ends.items()}
    if counts != {"in": part.in_channels, "out": part.out_channels} or any(group.numbers for group in near):
        return None
    number = _components([pair for found in ends.values() for pair in found], starts[-1], part.groups)
    members = tuple(
        Member(member.path, member.axis, number[member.units + start], member.channels)
        for start, group in zip(starts, near, strict=False)
        for member in group.members
        if (member.path, member.axis) != (path, "in")
    )
    widths = torch.cat([member.units for member in members if member.path == path]).bincount()
    if len(widths) <= int(number.max()) or bool((widths != widths[0]).any()):
        return None
    return ChannelGroup(name=path, units=len(widths), width=int(widths[0]), members=members)


def _places(part: nn.Conv2d, axis: Axis, channels: Tensor) -> Tensor:
    """The group of the convolution that each channel belongs to."""
    return channels // ((part.in_channels if axis == "in" else part.out_channels) // part.groups)


def _components(links: Sequence[tuple[Tensor, Tensor]], units: int, places: int) -> Tensor:
    """(units,) the number of each unit's component, where `links` pair units with places, counted from 0.

    Both sides take the smaller label in turn until nothing changes.
    """
    ends, middles = (torch.cat(side) for side in zip(*links, strict=True))
    label = torch.arange(units)
    while True:
        middle = torch.full((places,), units).scatter_reduce(0, middles, label[ends], "amin")
        lower = label.scatter_reduce(0, ends, middle[middles], "amin")
        if torch.equal(lower, label):
            number: Tensor = torch.unique(label, return_inverse=True)[1]
            return number
        label = lower
