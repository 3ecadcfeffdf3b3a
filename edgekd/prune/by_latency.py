"""Which units to remove when what counts is time: each step is the one that loses the least importance per millisecond.

A step takes some of a group's least important units at once, as many as make the engine faster: on a staircase that is
down to the next edge, and widths in between are never visited. A step that does not make it faster is not taken, and no
group stays at a width at which the engine is no faster than at a wider one.

This is the knapsack view of Shen et al. 2021 (HALP, arXiv 2110.10811). Theirs solves it with a table of latencies per
layer, in which a layer's cost does not depend on the width of the layer before it. Here it does, so the problem is no
knapsack any more: the greedy rule (best ratio first, prices taken anew after every step) makes a plan, and exchanges
between two groups improve it until none does. The tests hold it within a tenth of the exact solution of small problems.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from edgekd.nn.channels.apply import Removal
from edgekd.nn.channels.ends import chunk_ends
from edgekd.nn.channels.groups import ChannelGroup
from edgekd.nn.channels.widths import WidthLatency
from edgekd.prune.schedule import MacModel, least_important

FASTER_MS = 1e-9
"""Below this a step counts as not faster: sums of floating-point numbers are not exact."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """Units of one group that leave together.

    Attributes:
        loss: Sum of their scores.
        saved_ms: What the latency falls by, as it is followed.
    """

    group: ChannelGroup
    units: int
    loss: float
    saved_ms: float


@dataclass(frozen=True, kw_only=True)
class LatencyPlan:
    """What to remove.

    Attributes:
        removals: Groups that lose units.
        reached: Whether the goal holds; otherwise no further step would make the engine faster.
    """

    removals: tuple[Removal, ...]
    reached: bool


def plan_by_latency(
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Tensor],
    latency: WidthLatency,
    macs: MacModel,
    *,
    reached: Callable[[], bool],
    multiple: int,
) -> LatencyPlan:
    """Takes steps until the goal holds, then makes exchanges while they lower the sum of the scores that are lost.

    Args:
        groups: What can be removed.
        scores: (units,) by group name, comparable across groups.
        latency: Follows along; left in the state of the plan.
        macs: Follows along; left in the state of the plan.
        reached: Whether what `latency` and `macs` say now is enough.
        multiple: Widths that shrink end at a multiple of this.
    """
    lanes = {group.name: Lane(group, scores[group.name], multiple) for group in groups}
    road = _Road(lanes, latency, macs)
    while not reached():
        step = road.best()
        if step is None:
            return LatencyPlan(removals=_removals(lanes, scores), reached=False)
        road.move(step.group.name, step.units)
    while road.improve(reached):
        pass
    return LatencyPlan(removals=_removals(lanes, scores), reached=True)


class Lane:
    """One group on its way to narrower widths."""

    def __init__(self, group: ChannelGroup, scores: Tensor, multiple: int) -> None:
        self.group = group
        self.gone = 0
        self.ends = [0, *chunk_ends(group, multiple)]
        self._sums = [0.0, *scores.sort().values.cumsum(0).tolist()]

    def loss(self, units: int) -> float:
        """Sum of the scores that go when `units` more leave; negative when they come back."""
        return float(self._sums[self.gone + units] - self._sums[self.gone])

    def edges(self, latency: WidthLatency) -> list[int]:
        """Numbers of units gone, ascending, at which the engine is faster than with fewer gone; and the present one."""
        found, most_ms = [], -math.inf
        for end in self.ends:
            saved_ms = latency.saved_ms(self.group, end - self.gone)
            if saved_ms > most_ms + FASTER_MS:
                found.append(end)
                most_ms = saved_ms
            elif end == self.gone:
                # A neighbour's width may have made it useless since.
                found.append(end)
        return found

    def steps(self, edges: Sequence[int], latency: WidthLatency) -> Iterator[Step]:
        """The steps from here that make the engine faster."""
        for end in edges:
            if end > self.gone and (saved_ms := latency.saved_ms(self.group, end - self.gone)) > FASTER_MS:
                units = end - self.gone
                yield Step(group=self.group, units=units, loss=self.loss(units), saved_ms=saved_ms)

    def moves(self, edges: Sequence[int], sign: int) -> list[int]:
        """Units that may leave (sign 1) or come back (-1): to the next edge, and to those 2, 4, 8 ... edges further."""
        here = edges.index(self.gone)
        found, distance = [], 1
        while 0 <= here + sign * distance < len(edges):
            found.append(edges[here + sign * distance] - self.gone)
            distance *= 2
        return found


class _Road:
    """All groups together, with the edges and the best step of each kept until a neighbour changes."""

    def __init__(self, lanes: Mapping[str, Lane], latency: WidthLatency, macs: MacModel) -> None:
        self._lanes, self._latency, self._macs = lanes, latency, macs
        self._known: dict[str, Step | None] = {}
        self._edges: dict[str, list[int]] = {}

    def best(self) -> Step | None:
        """The step of least loss per millisecond; before all others, those whose units are better gone."""
        for name, lane in self._lanes.items():
            if name not in self._known:
                self._known[name] = min(lane.steps(self._edges_of(name), self._latency), default=None, key=_order)
        return min((step for step in self._known.values() if step is not None), default=None, key=_order)

    def move(self, name: str, units: int) -> None:
        """Takes units out, or brings them back."""
        self._shift(name, units)
        for other in self._latency.neighbours(self._lanes[name].group):
            self._known.pop(other, None)
            self._edges.pop(other, None)

    @contextmanager
    def _moved(self, name: str, units: int) -> Iterator[None]:
        """As `move` for the time of a block; what is known of the neighbours is known again afterwards."""
        near = self._latency.neighbours(self._lanes[name].group)
        known = {other: self._known[other] for other in near if other in self._known}
        edges = {other: self._edges[other] for other in near if other in self._edges}
        self.move(name, units)
        try:
            yield
        finally:
            self.move(name, -units)
            self._known |= known
            self._edges |= edges

    def _shift(self, name: str, units: int) -> None:
        lane = self._lanes[name]
        lane.gone += units
        self._latency.remove(lane.group, units)
        self._macs.remove(lane.group, units)

    def _edges_of(self, name: str) -> list[int]:
        if name not in self._edges:
            self._edges[name] = self._lanes[name].edges(self._latency)
        return self._edges[name]

    def improve(self, reached: Callable[[], bool]) -> bool:
        """Makes the best of all changes that bring units of one group back, and take as many of another as that needs;
        False when none loses less and still reaches the goal."""
        best, change = -FASTER_MS, None
        for name, lane in self._lanes.items():
            for back in lane.moves(self._edges_of(name), -1):
                gained = lane.loss(back)
                with self._moved(name, back):
                    for other, units in self._fillers(name, best - gained, reached):
                        loss = gained + (self._lanes[other].loss(units) if other else 0.0)
                        if loss < best:
                            best, change = loss, (name, back, other, units)
        if change is None:
            return False
        name, back, other, units = change
        self.move(name, back)
        if other:
            self.move(other, units)
        return True

    def _fillers(self, name: str, allowed: float, reached: Callable[[], bool]) -> Iterator[tuple[str, int]]:
        """(group, units) that reach the goal from here for less than `allowed`; ("", 0) where it holds already."""
        if reached():
            yield "", 0
            return
        for other, lane in self._lanes.items():
            for units in lane.moves(self._edges_of(other), 1) if other != name else ():
                if lane.loss(units) >= allowed:
                    break
                self._shift(other, units)
                holds = reached()
                self._shift(other, -units)
                if holds:
                    yield other, units
                    break


def _order(step: Step) -> tuple[bool, float, float]:
    costs = step.loss > 0
    return costs, step.loss / step.saved_ms if costs else step.loss, -step.saved_ms


def _removals(lanes: Mapping[str, Lane], scores: Mapping[str, Tensor]) -> tuple[Removal, ...]:
    return tuple((lane.group, least_important(scores[name], lane.gone)) for name, lane in lanes.items() if lane.gone)
