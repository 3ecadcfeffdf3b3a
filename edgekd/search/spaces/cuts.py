"""Which channels of a teacher are narrowed together: one axis for the inside of each stage, one for all the rest."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import nn

from edgekd.nn.channels.apply import Removal, made_by
from edgekd.nn.channels.groups import ChannelGroup
from edgekd.nn.skippable import Run

TRUNK = "trunk"
"""The streams that blocks add to, stem and head. All keep one share, so that leaving out a block never joins layers of
different widths."""
WHOLE = 100


def cuts_by_axis(
    module: nn.Module, groups: Sequence[ChannelGroup], runs: Sequence[Run]
) -> dict[str, list[ChannelGroup]]:
    """Groups by the axis that narrows them: `inner0` inside the blocks of the first run and so on, then `trunk`.

    Args:
        module: The teacher.
        groups: Proved ones. Those of which no layer makes all channels stay whole: their share could not be read off a
            narrowed network again.
        runs: Of its blocks.
    """
    cuts: dict[str, list[ChannelGroup]] = {f"inner{place}": [] for place in range(len(runs))}
    cuts[TRUNK] = []
    for group in groups:
        if made_by(module, group) is not None:
            place = _place(module, group, runs)
            cuts[TRUNK if place is None else f"inner{place}"].append(group)
    return {axis: found for axis, found in cuts.items() if found}


def kept_units(group: ChannelGroup, percent: int, multiple: int) -> int:
    """Units that stay: the share asked for, or as near to it as widths that are multiples come; all for 100."""
    step = multiple // math.gcd(multiple, group.width)
    if percent == WHOLE:
        return group.units
    return min(group.units, max(1, round(group.units * percent / 100 / step)) * step)


def removal(group: ChannelGroup, kept: int, gone: Sequence[str]) -> Removal | None:
    """The cut of a group down to `kept` units, without its layers inside blocks that are gone; None for no cut.

    The last units leave: recipes hold shapes only, and which units are worth keeping is decided with the weights.
    """
    members = tuple(member for member in group.members if not _inside(member.path, gone))
    if kept == group.units or not members:
        return None
    numbers = tuple(number for number in group.numbers if not _inside(number[0], gone))
    return dataclasses.replace(group, members=members, numbers=numbers), torch.arange(kept, group.units)


def _place(module: nn.Module, group: ChannelGroup, runs: Sequence[Run]) -> int | None:
    """The run next to the one block that holds the whole group; None when it reaches over several blocks."""
    shared = _common([member.path.split(".") for member in group.members])
    for parent in sorted({run.parent for run in runs}, key=len, reverse=True):
        above = parent.split(".") if parent else []
        if len(shared) <= len(above) or shared[: len(above)] != above:
            continue
        names = [name for name, _ in module.get_submodule(parent).named_children()]
        places = [place for place, run in enumerate(runs) if run.parent == parent]
        ends = [names.index(runs[place].blocks[-1].split(".")[-1]) for place in places]
        own = names.index(shared[len(above)]) if shared[len(above)] in names else 0
        return next((place for place, end in zip(places, ends, strict=True) if own <= end), places[-1])
    return None


def _common(paths: Sequence[list[str]]) -> list[str]:
    """The leading parts that all paths share."""
    shared = paths[0]
    for path in paths[1:]:
        length = next((at for at, (a, b) in enumerate(zip(shared, path, strict=False)) if a != b), len(path))
        shared = shared[: min(length, len(shared))]
    return shared


def _inside(path: str, blocks: Sequence[str]) -> bool:
    return any(path == block or path.startswith(f"{block}.") for block in blocks)
