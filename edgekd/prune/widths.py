"""The predicted latency of a network as a function of how many units each channel group has lost, step by step.

Choosing steps asks for thousands of latencies. Cutting and counting the network for each would take minutes, so every
operation's cost is followed here in closed form, and only the operations that a group touches are priced anew. The plan
that comes out is cut and counted for real by the stage.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from edgekd.core.cost import OpCost
from edgekd.errors import BuildFailed
from edgekd.nn.channels.apply import channels_along, part_at, remove_channels_
from edgekd.nn.channels.groups import Axis, ChannelGroup, Member
from edgekd.nn.count import layer_costs
from edgekd.nn.reparam import fusable_blocks, reparameterised

PriceOf = Callable[[OpCost], float]
"""Milliseconds of one operation: a latency model's, or a measured table's."""


@dataclass
class _Operation:
    """One operation of the whole network, and how it shrinks.

    Attributes:
        shares: By side and group: the part of that side's channels which one unit of the group has.
        channels: By side: how many there are, where a layer says so.
        moved: By group: elements that are no longer read or written per unit that left.
        members: The groups that change it, by name.
        prices: Milliseconds by units gone, in the order of `groups`; filled as they are asked for.
    """

    cost: OpCost
    shares: dict[Axis, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    channels: dict[Axis, int] = field(default_factory=dict)
    moved: dict[str, float] = field(default_factory=dict)
    members: dict[str, ChannelGroup] = field(default_factory=dict)
    prices: dict[tuple[int, ...], float] = field(default_factory=dict)

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups that change it."""
        return tuple(self.members)

    def cost_after(self, gone: dict[str, int], block: int = 1) -> OpCost:
        """Its cost with so many units gone; widths count rounded up to whole blocks."""
        kept = math.prod(self._kept(side, gone, block) for side in self.shares)
        # A kernel in blocks keeps its maps in blocks too, so what is moved falls block by block as well.
        moved = sum(self._left(name, gone[name], block) * elements for name, elements in self.moved.items())
        return replace(
            self.cost,
            macs=round(self.cost.macs * kept),
            params=round(self.cost.params * kept),
            activations=round(self.cost.activations - moved),
        )

    def _left(self, name: str, units: int, block: int) -> int:
        """How many of a group's units count as gone."""
        if block == 1:
            return units
        group = self.members[name]
        step = block // math.gcd(block, group.width)
        return max(0, group.units - step * _blocks(group.units - units, step))

    def _kept(self, side: Axis, gone: dict[str, int], block: int) -> float:
        kept = 1 - sum(gone[name] * share for name, share in self.shares[side].items())
        channels = self.channels.get(side)
        if channels is None or block == 1:
            return kept
        # Never less than what is there: a layer whose whole width is no multiple would seem to shrink faster.
        return max(kept, _blocks(round(channels * kept), block) / _blocks(channels, block))


def _blocks(channels: int, block: int) -> int:
    return -(-channels // block)


class WidthLatency:
    """Follows the predicted latency while units leave.

    Multiply-accumulates and weights are products over the two sides of a layer, what is moved is a sum over groups, so
    costs are exact except for the biases, which are counted with the weights.

    Args:
        module: The network before the cut.
        input_shape: (C, H, W).
        groups: What can be removed.
        price: Of one operation.
        block: The device's kernels compute channels in blocks of so many: a width in between costs what the next whole
            block does.
        fixed_ms: Cost of one inference beside its operations.
        on_progress: Called with (groups tried, groups in all); each group costs one count of the network.

    Raises:
        BuildFailed: The network computes other operations when its layers have other widths.
    """

    def __init__(
        self,
        module: nn.Module,
        input_shape: tuple[int, int, int],
        groups: Sequence[ChannelGroup],
        price: PriceOf,
        *,
        block: int = 1,
        fixed_ms: float = 0.0,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._price, self._block = price, block
        self._operations = [_Operation(cost) for cost in layer_costs(reparameterised(module), input_shape)]
        self._gone = {group.name: 0 for group in groups}
        self._touched: dict[str, list[_Operation]] = {}
        for done, group in enumerate(groups):
            self._touched[group.name] = self._found(module, input_shape, group)
            if on_progress is not None:
                on_progress(done + 1, len(groups))
        self._fixed_ms = fixed_ms
        self.now_ms = self._total_ms()

    def saved_ms(self, group: ChannelGroup, units: int) -> float:
        """What the latency falls by when `units` more of the group leave; negative where a kernel gets slower."""
        operations = self._touched[group.name]
        before = sum(self._price_of(operation) for operation in operations)
        self._gone[group.name] += units
        after = sum(self._price_of(operation) for operation in operations)
        self._gone[group.name] -= units
        return before - after

    def remove(self, group: ChannelGroup, units: int) -> None:
        """Counts `units` more of the group as gone; a negative number brings them back."""
        self.now_ms -= self.saved_ms(group, units)
        self._gone[group.name] += units

    def reset(self) -> None:
        """Brings every unit back."""
        self._gone = dict.fromkeys(self._gone, 0)
        self.now_ms = self._total_ms()

    def neighbours(self, group: ChannelGroup) -> frozenset[str]:
        """Names of the groups whose savings depend on the width of this one; its own is among them."""
        return frozenset({group.name, *(name for operation in self._touched[group.name] for name in operation.groups)})

    def costs(self) -> tuple[OpCost, ...]:
        """The operations of the network as it is now."""
        return tuple(operation.cost_after(self._gone) for operation in self._operations)

    def _total_ms(self) -> float:
        return self._fixed_ms + sum(self._price_of(operation) for operation in self._operations)

    def _price_of(self, operation: _Operation) -> float:
        key = tuple(self._gone[name] for name in operation.groups)
        if key not in operation.prices:
            operation.prices[key] = self._price(operation.cost_after(self._gone, self._block))
        return operation.prices[key]

    def _found(self, module: nn.Module, shape: tuple[int, int, int], group: ChannelGroup) -> list[_Operation]:
        """The operations that a trial cut of the group changes; they learn how."""
        units = max(1, group.units // 2)
        cut = copy.deepcopy(module)
        remove_channels_(cut, [(group, torch.arange(units))])
        costs = layer_costs(reparameterised(cut), shape)
        if [cost.name for cost in costs] != [operation.cost.name for operation in self._operations]:
            raise BuildFailed(
                f"The network computes other operations when {group.name} is narrower, so that its latency cannot be "
                "followed width by width.",
                hint="set prune.follow=macs",
            )
        changed = []
        for operation, cost in zip(self._operations, costs, strict=True):
            if cost == operation.cost:
                continue
            operation.members[group.name] = group
            operation.moved[group.name] = (operation.cost.activations - cost.activations) / units
            if cost.params != operation.cost.params or cost.macs != operation.cost.macs:
                for side, (share, channels) in _sides(module, group, operation.cost, cost, units).items():
                    operation.shares[side][group.name] = share
                    if channels is not None:
                        operation.channels[side] = channels
            changed.append(operation)
        return changed


def _sides(
    module: nn.Module, group: ChannelGroup, whole: OpCost, cut: OpCost, units: int
) -> dict[Axis, tuple[float, int | None]]:
    """By side of an operation: the part of its channels that one unit of the group has, and how many there are."""
    nearest = _nearest_members(module, group, whole.name)
    if nearest:
        found: dict[Axis, tuple[float, int | None]] = {}
        for member in nearest:
            channels = channels_along(part_at(module, member.path), member.axis)
            found[member.axis] = len(member.channels) / group.units / channels, channels
        return found
    # The products of attention belong to no layer: what the trial took away is taken as one side's.
    had, has = (whole.macs, cut.macs) if whole.macs else (whole.params, cut.params)
    return {"out": ((1 - has / had) / units, None)}


def _nearest_members(module: nn.Module, group: ChannelGroup, name: str) -> list[Member]:
    """The members at an operation's path or, for a block that is fused for deployment, inside that block."""
    exact = [member for member in group.members if member.path == name]
    if exact:
        return exact
    block = next((path for path in fusable_blocks(module) if f"{name}.".startswith(f"{path}.")), None)
    return [] if block is None else [member for member in group.members if member.path.startswith(f"{block}.")]
