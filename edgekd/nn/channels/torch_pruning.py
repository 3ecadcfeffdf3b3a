"""Channel groups from Torch-Pruning's dependency graph (Fang et al. 2023, DepGraph, arXiv 2301.12900).

Only the analysis is taken from there: which channels are coupled through additions, concatenations, reshapes and
depthwise layers. It works on a trace of autograd and guesses at operations it does not know (padding along channels,
for one), so its groups are proposals; `proof.py` decides.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.errors import BuildFailed
from edgekd.nn.channels.apply import is_channelwise
from edgekd.nn.channels.groups import Axis, ChannelGroup, Member


def proposed_groups(module: nn.Module, images: Tensor) -> list[ChannelGroup]:
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
            found = list(graph.get_all_groups(root_module_types=(nn.Conv2d, nn.Linear)))
        except Exception as err:
            raise BuildFailed(
                f"The channel dependencies of this network cannot be traced: {type(err).__name__}: {err}",
                hint="leave the prune stage out, or export the model with torch.export and pass the program",
            ) from err
    paths: dict[Any, str] = {part: path for path, part in traced.named_modules()}
    paths.update({parameter: path for path, parameter in traced.named_parameters()})
    groups = [_group_from_items(graph, group, paths) for group in found]
    # Nothing reads the channels of the last layer: they are the logits.
    return [group for group in groups if any(member.axis == "in" for member in group.members)]


def _group_from_items(graph: Any, group: Any, paths: dict[Any, str]) -> ChannelGroup:
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
