"""The predicted latency of a network as a function of how many units each channel group has lost, step by step.

Choosing steps asks for thousands of latencies. Cutting and counting the network for each would take minutes, so every
operation's cost is followed here in closed form, and only the operations that a group touches are priced anew. The plan
that comes out is cut and counted for real by the stage that cuts.

What was measured enters as corrections of what is predicted. Nothing is measured here.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
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
Stairs = Callable[[int], float]
"""The units that a group of so many units costs as many as: a kernel may compute more than is there."""


@dataclass(frozen=True, kw_only=True)
class Corrections:
    """What measurements change in a prediction.

    Attributes:
        stairs: By group; the others cost what they are wide.
        scales: By operation, a factor of its price.
        otherwise: The factor of all other operations.
        fixed_ms: Cost of one inference beside its operations; below zero where operations hide behind each other.
    """

    stairs: Mapping[str, Stairs] = field(default_factory=dict)
    scales: Mapping[str, float] = field(default_factory=dict)
    otherwise: float = 1.0
    fixed_ms: float = 0.0

    def scale(self, operation: str) -> float:
        """The factor of an operation's price."""
        return self.scales.get(operation, self.otherwise)


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

    def cost_after(self, gone: Mapping[str, float], block: int = 1) -> OpCost:
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

    def _left(self, name: str, units: float, block: int) -> float:
        """How many of a group's units count as gone."""
        group = self.members[name]
        return units if block == 1 else group.units - stairs_of_blocks(group, block)(group.units - round(units))

    def _kept(self, side: Axis, gone: Mapping[str, float], block: int) -> float:
        kept = 1 - sum(gone[name] * share for name, share in self.shares[side].items())
        channels = self.channels.get(side)
        if channels is None or block == 1:
            return kept
        # Never less than what is there: a layer whose whole width is no multiple would seem to shrink faster.
        return max(kept, _blocks(round(channels * kept), block) / _blocks(channels, block))


def _blocks(channels: int, block: int) -> int:
    return -(-channels // block)


def stairs_of_blocks(group: ChannelGroup, block: int) -> Stairs:
    """The stairs of kernels that compute channels in blocks of so many."""
    step = block // math.gcd(block, group.width)
    return lambda kept: min(group.units, step * _blocks(kept, step))


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
        corrections: What was measured; with stairs, `block` is 1.
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
        corrections: Corrections | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._price, self._block = price, block
        self._corrections = corrections or Corrections()
        self._groups = {group.name: group for group in groups}
        self._operations = [_Operation(cost) for cost in layer_costs(reparameterised(module), input_shape)]
        self._gone = {group.name: 0 for group in groups}
        self._touched: dict[str, list[_Operation]] = {}
        for done, group in enumerate(groups):
            self._touched[group.name] = self._found(module, input_shape, group)
            if on_progress is not None:
                on_progress(done + 1, len(groups))
        self.now_ms = self._total_ms()

    def correct(self, corrections: Corrections) -> None:
        """Puts other corrections in the place of those there were, and brings every unit back."""
        self._corrections = corrections
        for operation in self._operations:
            operation.prices.clear()
        self.reset()

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

    def kind_of(self, group: ChannelGroup) -> tuple[object, ...]:
        """What the group changes, in numbers: groups of equal kind cost the same at the same width.

        Numbers of multiply-accumulates, weights and elements together tell apart kernels, strides and maps.
        """
        changed = [
            (
                (cost := operation.cost).kind,
                cost.macs,
                cost.params,
                cost.activations,
                cost.fused,
                operation.moved[group.name],
                sorted((side, shares[group.name]) for side, shares in operation.shares.items() if group.name in shares),
            )
            for operation in self._touched[group.name]
        ]
        return group.units, group.width, *map(repr, sorted(changed, key=repr))

    def touched(self, groups: Sequence[ChannelGroup]) -> frozenset[str]:
        """Names of the operations that some of the groups change."""
        return frozenset(operation.cost.name for group in groups for operation in self._touched[group.name])

    def together(self, groups: Sequence[ChannelGroup]) -> Callable[[float], float]:
        """What the operations that the groups change take, as a function of the units that each group keeps, which need
        not be whole numbers; scaled, without stairs, and with every other group whole."""
        changed = {id(operation): operation for group in groups for operation in self._touched[group.name]}.values()
        whole = dict.fromkeys(self._groups, 0.0)

        def taken_ms(kept: float) -> float:
            gone = whole | {group.name: group.units - kept for group in groups}
            return sum(self._scaled(operation, gone, 1) for operation in changed)

        return taken_ms

    def costs(self) -> tuple[OpCost, ...]:
        """The operations of the network as it is now."""
        return tuple(operation.cost_after(self._gone) for operation in self._operations)

    def _total_ms(self) -> float:
        return self._corrections.fixed_ms + sum(self._price_of(operation) for operation in self._operations)

    def _price_of(self, operation: _Operation) -> float:
        key = tuple(self._gone[name] for name in operation.groups)
        if key not in operation.prices:
            gone = {name: self._counted(name) for name in operation.groups}
            operation.prices[key] = self._scaled(operation, gone, self._block)
        return operation.prices[key]

    def _scaled(self, operation: _Operation, gone: Mapping[str, float], block: int) -> float:
        return self._corrections.scale(operation.cost.name) * self._price(operation.cost_after(gone, block))

    def _counted(self, name: str) -> float:
        """How many of a group's units are gone, as its stairs count them."""
        stairs, gone = self._corrections.stairs.get(name), self._gone[name]
        if stairs is None:
            return gone
        units = self._groups[name].units
        return units - stairs(units - gone)

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
