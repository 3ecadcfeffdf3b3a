"""Which engines a latency table is made of: groups of equal kind are cut together, to a few widths.

A network repeats its blocks, so that few kinds of groups stand for many. Cutting all groups of a kind at once
multiplies what is to be seen, and divides the noise by as much.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgekd.nn.channels.ends import chunk_ends
from edgekd.nn.channels.groups import ChannelGroup
from edgekd.nn.channels.widths import WidthLatency


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Channel groups that cost the same at the same width.

    Attributes:
        groups: In the network's order.
        kept: Widths to time, in units, the widest first; the whole one is not among them.
        saves: Part of the predicted latency that the narrowest width is predicted to save.
    """

    groups: tuple[ChannelGroup, ...]
    kept: tuple[int, ...]
    saves: float

    @property
    def units(self) -> int:
        """Of each group, whole."""
        return self.groups[0].units

    @property
    def words(self) -> str:
        """For messages."""
        first, more = self.groups[0].name, len(self.groups) - 1
        return f"{first} and {more} more like it" if more else first


def kinds_of(latency: WidthLatency, groups: Sequence[ChannelGroup], multiple: int) -> tuple[Kind, ...]:
    """The kinds, those first that are predicted to save most; every width that a plan may end at is to be timed.

    Args:
        latency: Follows the groups.
        groups: What can be removed.
        multiple: Widths end at a multiple of this.
    """
    alike: dict[tuple[object, ...], list[ChannelGroup]] = defaultdict(list)
    for group in groups:
        alike[latency.kind_of(group)].append(group)
    kinds = []
    for members in alike.values():
        units = members[0].units
        kept = tuple(units - gone for gone in chunk_ends(members[0], multiple))
        if kept:
            taken_ms = latency.together(members)
            saved = (taken_ms(units) - taken_ms(kept[-1])) / latency.now_ms
            kinds.append(Kind(groups=tuple(members), kept=kept, saves=saved))
    return tuple(sorted(kinds, key=lambda kind: -kind.saves))


def within(kinds: Sequence[Kind], *, widths: int, engines: int) -> tuple[tuple[Kind, ...], tuple[Kind, ...]]:
    """(kinds with the widths that are timed, kinds that are left out).

    Args:
        kinds: Those first that matter most.
        widths: Of a kind, at most: the narrowest, the widest and some between, evenly spread.
        engines: In all, at most; the kinds at the end get fewer widths, and then none.
    """
    timed, left_out = [], []
    for kind in kinds:
        kept = spread(kind.kept, min(widths, engines))
        engines -= len(kept)
        if kept:
            timed.append(replace(kind, kept=kept))
        else:
            left_out.append(kind)
    return tuple(timed), tuple(left_out)


def spread(values: Sequence[int], most: int) -> tuple[int, ...]:
    """At most so many of the values, evenly spread, in their order; the last one first of all, then the first."""
    if most >= len(values):
        return tuple(values)
    if most <= 1:
        return tuple(values[-1:]) if most == 1 else ()
    last = len(values) - 1
    return tuple(values[round(index * last / (most - 1))] for index in range(most))
