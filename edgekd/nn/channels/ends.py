"""The widths at which a group may end: what a plan chooses among, and what is worth measuring."""

from __future__ import annotations

import math

from edgekd.nn.channels.groups import ChannelGroup

LEAST_KEPT = 0.1
"""No group loses more than nine tenths of its units: a layer of one channel passes nothing on."""


def chunk_ends(group: ChannelGroup, multiple: int) -> list[int]:
    """How many units may be gone, ascending: what remains is a multiple in channels, and not too little."""
    step = multiple // math.gcd(multiple, group.width)
    most = group.units - max(step, math.ceil(LEAST_KEPT * group.units))
    return list(range(group.units % step or step, most + 1, step))
