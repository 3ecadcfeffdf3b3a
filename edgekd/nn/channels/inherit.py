"""The weights that a network cut out of another one starts from."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from edgekd.nn.channels.analysis import analyse
from edgekd.nn.channels.apply import Removal, channels_along, made_by, part_at, remove_channels_
from edgekd.nn.channels.groups import ChannelGroup
from edgekd.nn.channels.importance import unit_sums


def inherit_(module: nn.Module, teacher: nn.Module, input_shape: tuple[int, int, int]) -> tuple[str, ...]:
    """Gives a network that was cut out of a teacher the teacher's weights, by name.

    Of a group of channels that got narrower, the units of largest l2 norm are taken over, the same in all layers, as
    pruning would. Where a tensor is smaller for another reason, its leading part is.

    Args:
        module: The teacher's architecture with blocks left out and narrower layers.
        teacher: Left as it was.
        input_shape: (C, H, W) of both.

    Returns:
        Names of the module's tensors that the teacher has no values for; they stay as they were.
    """
    whole = teacher.state_dict()
    cut = teacher
    if any(name in whole and whole[name].shape != value.shape for name, value in module.state_dict().items()):
        cut = copy.deepcopy(teacher)
        remove_channels_(cut, list(_removals(module, teacher, analyse(teacher, input_shape).groups)))
    found, left = cut.state_dict(), []
    with torch.no_grad():
        for name, value in module.state_dict().items():
            source = found.get(name)
            if source is None or source.ndim != value.ndim or any(map(int.__lt__, source.shape, value.shape)):
                left.append(name)
            else:
                value.copy_(source[tuple(slice(size) for size in value.shape)])
    return tuple(left)


def _removals(module: nn.Module, teacher: nn.Module, groups: Sequence[ChannelGroup]) -> Iterator[Removal]:
    """The least important units of each group that is narrower in the module than in the teacher."""
    parts = dict(module.named_modules())
    for group in groups:
        maker = made_by(teacher, group, among=parts)
        if maker is None:
            continue
        had, has = (channels_along(part_at(network, maker), "out") for network in (teacher, module))
        gone = group.units - group.units * has // had
        if gone > 0:
            yield group, unit_sums(teacher, group, "l2").argsort(stable=True)[:gone].sort().values
