"""How many units leave each group, so that a network keeps the asked share of its multiply-accumulates.

Units leave in chunks that keep every width a multiple of what the device likes. All chunks of all groups stand in one
order; the plan is the shortest beginning of it that reaches the target, less the chunks that turn out not to be needed.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from edgekd.core.cost import OpCost
from edgekd.nn.channels.apply import Removal, channels_along, part_at
from edgekd.nn.channels.ends import chunk_ends
from edgekd.nn.channels.groups import Axis, ChannelGroup


class MacModel:
    """Multiply-accumulates as a function of the units removed, without running the network.

    Exact for dense, depthwise and attention layers; the pruned network is counted anyway.

    Args:
        module: The network before pruning.
        costs: Of its operations, as `edgekd.nn.count.layer_costs` gives them.
        groups: What can be removed.
    """

    def __init__(self, module: nn.Module, costs: Sequence[OpCost], groups: Sequence[ChannelGroup]) -> None:
        self._macs: dict[str, int] = Counter()
        for cost in costs:
            self._macs[cost.name] += cost.macs
        self._kept: dict[str, dict[Axis, float]] = defaultdict(dict)
        """Share of the channels kept, by operation and side."""
        self._shares = {group.name: list(self._shares_of(module, group)) for group in groups}
        self.total = sum(self._macs.values())
        self.now = float(self.total)

    def remove(self, group: ChannelGroup, units: int) -> None:
        """Counts `units` more of the group as removed; a negative number brings them back."""
        for name, axis, share in self._shares[group.name]:
            before = self._macs[name] * math.prod(self._kept[name].values())
            self._kept[name][axis] -= units * share
            self.now += self._macs[name] * math.prod(self._kept[name].values()) - before

    def _shares_of(self, module: nn.Module, group: ChannelGroup) -> Iterator[tuple[str, Axis, float]]:
        """(operation, side, share of its channels in one unit) of each operation that shrinks with the group."""
        for member in group.members:
            if self._macs[member.path]:
                share = len(member.channels) / group.units / channels_along(part_at(module, member.path), member.axis)
                self._kept[member.path][member.axis] = 1.0
                yield member.path, member.axis, share
        layers = dict(module.named_modules())
        for path in {path for path, _, _ in group.numbers}:
            # The products of attention belong to no layer; they are listed under the path of the attention module.
            for name in self._macs:
                if name.startswith(f"{path}.") and name not in layers:
                    self._kept[name]["out"] = 1.0
                    yield name, "out", 1 / group.units


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """Units of one group that leave together, the group's least important ones that are still there."""

    group: ChannelGroup
    units: int
    share_gone: float
    score: float


def plan_removals(
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Tensor],
    macs: MacModel,
    *,
    target: float,
    multiple: int,
    across: bool,
) -> list[Removal]:
    """The units to remove so that at most `target` multiply-accumulates remain, as few as possible.

    Args:
        groups: What can be removed.
        scores: (units,) importance by group name.
        macs: Counts along; left in the state of the plan, above `target` when all groups together do not reach it.
        target: Multiply-accumulates to keep.
        multiple: Widths that shrink end at a multiple of this.
        across: Lets groups compete by score; otherwise all of them shrink by about the same share.
    """
    chunks = [chunk for group in groups for chunk in _chunks(group, scores[group.name], multiple)]
    chunks.sort(key=lambda chunk: (chunk.score, chunk.share_gone) if across else (chunk.share_gone, chunk.score))
    taken: list[_Chunk] = []
    for chunk in chunks:
        if macs.now <= target:
            break
        macs.remove(chunk.group, chunk.units)
        taken.append(chunk)
    gone: dict[str, int] = Counter()
    for chunk in taken:
        gone[chunk.group.name] += chunk.units
    closed: set[str] = set()
    for chunk in reversed(taken):
        macs.remove(chunk.group, -chunk.units)
        if macs.now <= target and chunk.group.name not in closed:
            gone[chunk.group.name] -= chunk.units
        else:
            # Chunks of a group return in the order opposite to the one they left in, or not at all.
            macs.remove(chunk.group, chunk.units)
            closed.add(chunk.group.name)
    return [(group, least_important(scores[group.name], gone[group.name])) for group in groups if gone[group.name]]


def least_important(scores: Tensor, units: int) -> Tensor:
    """The units of least score, ascending; among equal scores those of lower number."""
    return scores.argsort(stable=True)[:units].sort().values


def _chunks(group: ChannelGroup, scores: Tensor, multiple: int) -> Iterator[_Chunk]:
    ordered, start = scores.sort().values, 0
    for end in chunk_ends(group, multiple):
        score = float(ordered[start:end].mean())
        yield _Chunk(group=group, units=end - start, share_gone=end / group.units, score=score)
        start = end
