"""What can be cut: units of channels that have to leave a network together.

A group is plain data. It says for each of its units which channels of which layers belong to it, so that ranking,
planning and cutting need no dependency graph. Who finds the groups is `torch_pruning.py`; who proves them, `proof.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Axis = Literal["out", "in"]
"""`out`: the layer makes or carries these channels. `in`: the layer reads them."""


@dataclass(frozen=True, eq=False)
class Member:
    """A layer, or a bare parameter, that has channels in a group.

    Attributes:
        path: Of the module or the parameter inside the network.
        axis: Which side of the layer.
        units: (M,) int64, the unit that each of the channels belongs to.
        channels: (M,) int64, distinct channel numbers along the axis.
    """

    path: str
    axis: Axis
    units: Tensor
    channels: Tensor

    def channels_of(self, units: Tensor) -> Tensor:
        """The channels that leave with the given units, in ascending order."""
        return self.channels[torch.isin(self.units, units)].sort().values


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Units that can be removed one by one, each from all members at once.

    Attributes:
        name: Path of the layer the group was found from.
        units: How many there are.
        width: Channels that one unit has in that layer: 1, or the head's dimension for attention heads.
        members: Every layer concerned.
        numbers: (module path, attribute, decrease per unit) of plain numbers that must follow, `num_heads` for example.
    """

    name: str
    units: int
    width: int
    members: tuple[Member, ...]
    numbers: tuple[tuple[str, str, int], ...] = ()


def split_by_members(group: ChannelGroup) -> list[ChannelGroup]:
    """Groups in each of which every member has channels of every unit.

    Layers that are concatenated have one reader in common and no channels: their units can leave independently of each
    other, and the width of each layer can be kept a multiple of what the device likes.
    """
    holds = torch.stack([torch.isin(torch.arange(group.units), member.units) for member in group.members], dim=1)
    patterns, pattern_of = torch.unique(holds, dim=0, return_inverse=True)
    if len(patterns) == 1:
        return [group]
    return [
        _part_of(group, pattern, (pattern_of == index).nonzero().flatten()) for index, pattern in enumerate(patterns)
    ]


def _part_of(group: ChannelGroup, pattern: Tensor, units: Tensor) -> ChannelGroup:
    """The group reduced to `units`, which are numbered anew, and to the members that have them."""
    number = torch.full((group.units,), -1)
    number[units] = torch.arange(len(units))
    members = []
    own: list[str] = []
    for member, has in zip(group.members, pattern.tolist(), strict=True):
        if has:
            inside = number[member.units] >= 0
            members.append(Member(member.path, member.axis, number[member.units][inside], member.channels[inside]))
            own += [member.path] if bool(inside.all()) and member.axis == "out" else []
    name = own[0] if own else f"{group.name}[{int(units[0])}:{int(units[-1]) + 1}]"
    return ChannelGroup(name=name, units=len(units), width=group.width, members=tuple(members), numbers=group.numbers)


def head_groups(module: nn.Module) -> list[ChannelGroup]:
    """The heads of multi-head attention with a fused `qkv` and a `proj` layer, as timm and most others write it.

    Whole heads are removed: the remaining ones keep their dimension and with it the scale of their logits. Bare
    parameters of the attention that have a value for each head, or each channel of the heads, follow: tables of
    relative positions do.
    """
    groups = []
    for path, part in module.named_modules():
        heads = getattr(part, "num_heads", None)
        qkv, proj = getattr(part, "qkv", None), getattr(part, "proj", None)
        if not (isinstance(heads, int) and isinstance(qkv, nn.Linear) and isinstance(proj, nn.Linear)):
            continue
        width = qkv.out_features // (3 * heads) if heads > 0 else 0
        inner = heads * width
        if not inner or (qkv.out_features, proj.in_features) != (3 * inner, inner):
            continue
        channels, units = torch.arange(inner), torch.arange(heads).repeat_interleave(width)
        queries_keys_values = torch.cat([channels, channels + inner, channels + 2 * inner])
        numbers = [(path, "num_heads", 1)]
        if getattr(part, "attn_dim", None) == inner:
            numbers.append((path, "attn_dim", width))
        name = f"{path}.qkv" if path else "qkv"
        groups.append(
            ChannelGroup(
                name=name,
                units=heads,
                width=width,
                members=(
                    Member(name, "out", units.repeat(3), queries_keys_values),
                    Member(f"{path}.proj" if path else "proj", "in", units, channels),
                    *_parameters_of_heads(path, part, units),
                ),
                numbers=tuple(numbers),
            )
        )
    return groups


def _parameters_of_heads(path: str, part: nn.Module, units: Tensor) -> Iterator[Member]:
    """The attention's own parameters with as many values as there are heads, or channels of heads.

    Args:
        units: (heads * width,), the head of each channel.
    """
    heads = torch.unique(units)
    for name, parameter in part.named_parameters(recurse=False):
        size = parameter.shape[parameter_axis(parameter)] if parameter.ndim else 0
        for owners in (heads, units):
            if size == len(owners):
                yield Member(f"{path}.{name}" if path else name, "out", owners, torch.arange(size))
                break


def parameter_axis(parameter: Tensor) -> int:
    """The axis of a bare parameter that runs over channels: the last one that is not 1."""
    return max((axis for axis, size in enumerate(parameter.shape) if size > 1), default=0)
