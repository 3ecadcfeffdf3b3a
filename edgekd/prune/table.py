"""What a latency table has to do with the network that is cut: whether it speaks of it, and what it corrects."""

from __future__ import annotations

from collections.abc import Sequence

from edgekd.errors import BuildFailed, UserError
from edgekd.nn.channels.groups import ChannelGroup
from edgekd.nn.channels.widths import Corrections, Stairs, stairs_of_blocks
from edgekd.targets.latency_table import LatencyTable
from edgekd.targets.schema import Precision


def check_table(table: LatencyTable, groups: Sequence[ChannelGroup], precision: Precision) -> None:
    """Refuses a table of other engines than those of this network.

    The network may have been cut since: widths are absolute, so that a table of the whole one serves every round.

    Raises:
        UserError: Another precision.
        BuildFailed: Another network.
    """
    if table.precision != precision:
        raise UserError(
            f"The latency table is of {table.precision.upper()} engines, but the pruned network is to be deployed in "
            f"{precision.upper()}.",
            hint="give prune.precision and latency-table.precision the same value",
        )
    known = [(group, kind) for group in groups if (kind := table.kind_of(group.name)) is not None]
    wider = next((group for group, kind in known if group.units > kind.units), None)
    if not known or wider is not None:
        why = (
            "none of the groups of channels has the name of one that was timed"
            if wider is None
            else f"{wider.name} has {wider.units} units, more than were timed"
        )
        raise BuildFailed(
            f"The latency table is of another network: {why}.",
            hint="connect the latency-table node of the network before its first cut",
        )


def corrections_from_table(table: LatencyTable, groups: Sequence[ChannelGroup], block: int) -> Corrections:
    """What the table corrects in its latency model; groups that were not timed keep the stairs that are assumed.

    Args:
        table: Of the network that the groups are in.
        groups: What can be removed.
        block: The assumption: kernels compute channels in blocks of so many.
    """
    stairs: dict[str, Stairs] = {}
    for group in groups:
        kind = table.kind_of(group.name)
        stairs[group.name] = stairs_of_blocks(group, block) if kind is None else kind.effective_of
    return Corrections(stairs=stairs, scales=table.scales, otherwise=table.otherwise, fixed_ms=table.fixed_ms)
