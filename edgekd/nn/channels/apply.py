"""Cuts channels out of layers, in place, and says which layers it can cut."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from edgekd.nn.channels.groups import Axis, ChannelGroup, parameter_axis

Removal = tuple[ChannelGroup, Tensor]
"""A group and the units that leave it, int64."""


def remove_channels_(module: nn.Module, removals: Iterable[Removal]) -> None:
    """Removes the units from every member of their groups; the module computes what it did with them masked.

    Args:
        module: Holds the members' paths; each member passes `why_not_cut`, or takes whole groups of a convolution.
        removals: At most one per group. A layer may stand in several groups.
    """
    cut: dict[tuple[str, Axis], list[Tensor]] = defaultdict(list)
    for group, units in removals:
        for member in group.members:
            cut[member.path, member.axis].append(member.channels_of(units))
        for path, attribute, per_unit in group.numbers:
            part = module.get_submodule(path)
            setattr(part, attribute, getattr(part, attribute) - per_unit * len(units))
    for (path, axis), channels in cut.items():
        removed = torch.cat(channels)
        if len(removed):
            _cut_(module, path, axis, removed)


def part_at(module: nn.Module, path: str) -> nn.Module | nn.Parameter:
    """The submodule or bare parameter at a path."""
    owner_path, _, name = path.rpartition(".")
    found = getattr(module.get_submodule(owner_path), name)
    if not isinstance(found, nn.Module | nn.Parameter):
        raise TypeError(f"{path} is a {type(found).__name__}, neither a module nor a parameter")
    return found


def why_not_cut(part: nn.Module | nn.Parameter) -> str | None:
    """Why single channels of this layer cannot be removed; None when they can."""
    if isinstance(part, nn.Conv2d):
        return f"a convolution of {part.groups} groups" if is_grouped(part) else None
    if isinstance(part, nn.GroupNorm) and part.num_groups != 1:
        return f"a GroupNorm of {part.num_groups} groups"
    if isinstance(part, nn.Linear | nn.Parameter) or is_channelwise(part):
        return None
    return f"a layer of type {type(part).__name__}"


def is_depthwise(part: nn.Module | nn.Parameter) -> bool:
    """A convolution that filters each channel by itself, one output per input."""
    return isinstance(part, nn.Conv2d) and part.groups == part.in_channels == part.out_channels and part.groups > 1


def is_grouped(part: nn.Module | nn.Parameter) -> bool:
    """A convolution of groups of several channels, which can only leave as a whole."""
    return isinstance(part, nn.Conv2d) and part.groups > 1 and not is_depthwise(part)


def is_channelwise(part: nn.Module | nn.Parameter) -> bool:
    """A layer whose input and output channels are the same, so that both sides are cut at once."""
    if isinstance(part, nn.PReLU):
        return part.num_parameters > 1
    return is_depthwise(part) or isinstance(part, _NormBase) or mixes_channels(part)


def mixes_channels(part: nn.Module | nn.Parameter) -> bool:
    """A normalisation whose statistics run over channels, so that removing one changes the others."""
    return isinstance(part, nn.LayerNorm | nn.GroupNorm)


def keep_channels_(part: nn.Module, axis: Axis, keep: Tensor) -> None:
    """Reduces a layer to the channels `keep` (int64, ascending); `axis` matters for dense layers only.

    Of a grouped convolution, `keep` are the output channels of whole groups; their inputs follow.
    """
    size = len(keep)
    if isinstance(part, nn.Conv2d) and is_grouped(part):
        part.groups = size * part.groups // part.out_channels
        part.in_channels = part.groups * part.weight.shape[1]
    if isinstance(part, nn.Conv2d | nn.Linear) and not is_depthwise(part):
        _select_(part, ("weight", "bias") if axis == "out" else ("weight",), 0 if axis == "out" else 1, keep)
        setattr(part, f"{axis}_features" if isinstance(part, nn.Linear) else f"{axis}_channels", size)
        return
    _select_(part, ("weight", "bias", "running_mean", "running_var"), 0, keep)
    for number in ("in_channels", "out_channels", "groups", "num_features", "num_channels", "num_parameters"):
        if hasattr(part, number):
            setattr(part, number, size)
    if isinstance(part, nn.LayerNorm):
        part.normalized_shape = (size,)


def _cut_(module: nn.Module, path: str, axis: Axis, removed: Tensor) -> None:
    part = part_at(module, path)
    if isinstance(part, nn.Parameter):
        owner_path, _, name = path.rpartition(".")
        keep = _others(part.shape[parameter_axis(part)], removed)
        _select_(module.get_submodule(owner_path), (name,), parameter_axis(part), keep)
    else:
        keep_channels_(part, axis, _others(channels_along(part, axis), removed))


def channels_along(part: nn.Module | nn.Parameter, axis: Axis) -> int:
    """How many channels a layer or a bare parameter has on one side."""
    if isinstance(part, nn.Parameter):
        return part.shape[parameter_axis(part)]
    if isinstance(part, nn.Conv2d | nn.Linear) and axis == "in" and not is_depthwise(part):
        return part.weight.shape[1]
    if isinstance(part, nn.LayerNorm):
        return part.normalized_shape[-1]
    if isinstance(part, _NormBase):
        return part.num_features
    weight = part.weight
    assert isinstance(weight, Tensor)
    return len(weight)


def made_by(module: nn.Module, group: ChannelGroup, among: Container[str] | None = None) -> str | None:
    """Path of a layer whose output channels are those of the group, all of them and no others.

    Args:
        module: Holds the members' paths.
        group: Found in it.
        among: Paths to choose from; None takes any.
    """
    for member in group.members:
        if member.axis == "out" and (among is None or member.path in among):
            part = part_at(module, member.path)
            if not isinstance(part, nn.Parameter) and channels_along(part, "out") == len(member.channels):
                return member.path
    return None


def _others(size: int, removed: Tensor) -> Tensor:
    keep = torch.ones(size, dtype=torch.bool)
    keep[removed] = False
    return keep.nonzero().flatten()


def _select_(part: nn.Module, names: tuple[str, ...], axis: int, keep: Tensor) -> None:
    for name in names:
        old = getattr(part, name, None)
        if isinstance(old, Tensor):
            new = old.detach().index_select(axis, keep)
            setattr(part, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
