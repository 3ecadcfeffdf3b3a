"""Channel groups from Torch-Pruning's dependency graph (Fang et al. 2023, DepGraph, arXiv 2301.12900).

Only the analysis is taken from there: which channels are coupled through additions, concatenations, reshapes and
depthwise layers. It works on a trace of autograd and guesses at operations it does not know (padding along channels,
for one), so its groups are proposals; `proof.py` decides.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.errors import BuildFailed
from edgekd.nn.channels.apply import is_channelwise, why_not_cut
from edgekd.nn.channels.groups import Axis, ChannelGroup, Member

_NOT_FOLLOWED = (IndexError, KeyError, ValueError, TypeError, AttributeError, RuntimeError, AssertionError)
"""What following channels through an unknown operation ends in: IndexError in recurrent layers, for one."""


@dataclass(frozen=True, kw_only=True)
class Proposals:
    """What the graph says.

    Attributes:
        groups: Those it can follow.
        lost: Reason by path of each layer whose output channels it cannot follow.
    """

    groups: tuple[ChannelGroup, ...]
    lost: Mapping[str, str]


def proposed_groups(module: nn.Module, images: Tensor) -> Proposals:
    """All groups rooted in the output channels of convolutions and linear layers, except the one of the logits.

    Args:
        module: In evaluation mode; left as it was.
        images: (N, C, H, W), an example input.

    Raises:
        BuildFailed: The network cannot be traced.
    """
    import torch_pruning

    traced = copy.deepcopy(module).requires_grad_(True)
    with warnings.catch_warnings():
        # It warns of each bare parameter and each unknown operation; the proof settles both.
        warnings.simplefilter("ignore")
        try:
            graph = torch_pruning.DependencyGraph().build_dependency(traced, example_inputs=images, verbose=False)
        except Exception as err:
            raise BuildFailed(
                f"The channel dependencies of this network cannot be traced: {type(err).__name__}: {err}",
                hint="leave the prune stage out, or export the model with torch.export and pass the program",
            ) from err
        paths: dict[Any, str] = {part: path for path, part in traced.named_modules()}
        paths.update({parameter: path for path, parameter in traced.named_parameters()})
        groups, lost = _followed(graph, traced, paths)
    # Nothing reads the channels of the last layer: they are the logits.
    groups = [group for group in groups if any(member.axis == "in" for member in group.members)]
    return Proposals(groups=tuple(groups), lost=lost)


def _followed(graph: Any, traced: nn.Module, paths: Mapping[Any, str]) -> tuple[list[ChannelGroup], dict[str, str]]:
    """Each layer's group, once, as `DependencyGraph.get_all_groups` goes through them; and what cannot be followed.

    That function ends at the first layer it cannot follow.
    """
    groups: list[ChannelGroup] = []
    lost: dict[str, str] = {}
    visited: set[Any] = set()
    for part in list(graph.module2node):
        # Containers stand in the graph too, as do bare parameters, which compare element by element.
        if not isinstance(part, nn.Conv2d | nn.Linear) or part in visited:
            continue
        pruner = graph.get_pruner_of_module(part)
        channels = None if pruner is None else pruner.get_out_channels(part)
        if pruner is None or channels is None:
            continue
        try:
            found = graph.get_pruning_group(part, pruner.prune_out_channels, list(range(channels)))
        except _NOT_FOLLOWED as err:
            through = _through(graph, part, traced, paths)
            lost[paths[part]] = f"its channels cannot be followed{through} ({type(err).__name__})"
            continue
        visited |= {item.dep.target.module for item in found.items if graph.is_out_channel_pruning_fn(item.dep.handler)}
        groups.append(_group_from_items(graph, found, paths))
    return groups, lost


def _through(graph: Any, root: nn.Module, traced: nn.Module, paths: Mapping[Any, str]) -> str:
    """` through GRU 'rnn'`: the nearest layer behind `root` whose channels are not cut; empty when there is none."""
    waiting, seen = list(graph.module2node[root].outputs), {graph.module2node[root]}
    while waiting:
        node = waiting.pop(0)
        if node in seen:
            continue
        seen.add(node)
        # Of a layer that the graph does not know, it sees the operations and, as their inputs, the parameters.
        for near in (node, *node.inputs):
            path = paths.get(near.module, "")
            path = path.rpartition(".")[0] if isinstance(near.module, nn.Parameter) else path
            layer = traced.get_submodule(path)
            if path and not list(layer.children()) and why_not_cut(layer) is not None:
                return f" through {type(layer).__name__} {path!r}"
        if not isinstance(node.module, nn.Conv2d | nn.Linear):  # these make channels of their own
            waiting += node.outputs
    return ""


def _group_from_items(graph: Any, group: Any, paths: Mapping[Any, str]) -> ChannelGroup:
    members: dict[tuple[str, Axis], Member] = {}
    for item in group.items:
        part = item.dep.target.module
        path = paths.get(part)
        if path is None:  # an operation between layers
            continue
        makes = is_channelwise(part) or graph.is_out_channel_pruning_fn(item.dep.handler)
        axis: Axis = "out" if makes else "in"
        members.setdefault((path, axis), Member(path, axis, torch.tensor(item.root_idxs), torch.tensor(item.idxs)))
    root = next(iter(members.values()))
    return ChannelGroup(name=root.path, units=len(root.channels), width=1, members=tuple(members.values()))
