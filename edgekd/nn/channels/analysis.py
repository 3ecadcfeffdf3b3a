"""Which channel groups of a network are cut: proposed by its dependency graph, filtered, then proved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from edgekd.core.schema import suggest
from edgekd.errors import UserError
from edgekd.nn.channels.apply import channels_along, is_channelwise, part_at, why_not_cut
from edgekd.nn.channels.grouped import joined, leaves_whole
from edgekd.nn.channels.groups import ChannelGroup, head_groups, split_by_members
from edgekd.nn.channels.proof import Proof
from edgekd.nn.channels.torch_pruning import proposed_groups


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """What can be cut, and what cannot.

    Attributes:
        groups: Proved groups.
        kept_whole: Reason by name of each group that stays as it is.
        proof: Checks the final plan on the same randomised copy.
    """

    groups: tuple[ChannelGroup, ...]
    kept_whole: Mapping[str, str]
    proof: Proof


def analyse(
    module: nn.Module,
    input_shape: tuple[int, int, int],
    *,
    exclude: Sequence[str] = (),
    on_progress: Callable[[int, int], None] | None = None,
) -> Analysis:
    """The network's channel groups, each one proved or kept whole with a reason.

    Args:
        module: In evaluation mode; left as it was.
        input_shape: (C, H, W).
        exclude: Paths or glob patterns of modules; groups in which one of them makes channels stay whole.
        on_progress: Called with (groups decided, groups in all).

    Raises:
        UserError: A pattern matches no module.
        BuildFailed: The network cannot be traced.
    """
    _check_patterns(module, exclude)
    proposals = proposed_groups(module, torch.zeros(1, *input_shape))
    heads = head_groups(module)
    proposed = joined(module, _with_heads(proposals.groups, heads))
    kept_whole = {path: why for path, why in proposals.lost.items() if path not in {group.name for group in heads}}
    kept_whole |= {group.name: why for group in proposed if (why := _why_not_cut(module, group))}
    parts = [part for group in proposed if group.name not in kept_whole for part in split_by_members(group)]
    kept_whole |= {part.name: why for part in parts if (why := _why_not_chosen(module, part, exclude))}
    candidates = [part for part in parts if part.name not in kept_whole]
    proof = Proof(module, input_shape)
    groups = proof.sound(candidates, on_progress)
    kept_whole |= proof.refuted
    return Analysis(groups=tuple(groups), kept_whole=kept_whole, proof=proof)


def _with_heads(proposed: Sequence[ChannelGroup], heads: Sequence[ChannelGroup]) -> list[ChannelGroup]:
    """The proposals, with whole heads in the place of single channels of queries, keys and values."""
    left = {group.name: group for group in heads}
    found = []
    for group in proposed:
        makers = [member.path for member in group.members if member.axis == "out" and member.path in left]
        found += [left.pop(path) for path in makers] or [group]
    return [*found, *left.values()]


def _why_not_cut(module: nn.Module, group: ChannelGroup) -> str | None:
    for member in group.members:
        part = part_at(module, member.path)
        reason = why_not_cut(part)
        if reason is not None and not (isinstance(part, nn.Conv2d) and leaves_whole(part, member)):
            return f"{member.path} is {reason}"
        channels = channels_along(part, "out")
        # A trace that runs into padding or slicing along channels pairs layers of different widths. What only carries
        # channels carries those of several groups behind a concatenation.
        if member.axis == "out" and len(member.channels) < channels and not is_channelwise(part):
            return f"it holds only {len(member.channels)} of the {channels} channels of {member.path}"
    return None


def _why_not_chosen(module: nn.Module, group: ChannelGroup, exclude: Sequence[str]) -> str | None:
    if group.units == 1:
        return "it has a single unit"
    for member in group.members:
        makes = member.axis == "out" and not is_channelwise(part_at(module, member.path))
        if makes and any(fnmatchcase(member.path, pattern) for pattern in exclude):
            return f"{member.path} is excluded"
    return None


def _check_patterns(module: nn.Module, exclude: Sequence[str]) -> None:
    paths = [path for path, _ in module.named_modules() if path]
    for pattern in exclude:
        if not any(fnmatchcase(path, pattern) for path in paths):
            raise UserError(f"exclude: no module matches {pattern!r}.{suggest(pattern, paths)}")
