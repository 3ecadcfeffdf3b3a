"""The blocks of a network, of any library, and what goes in and out of them.

A block is an outermost item of a sequence (`Sequential`, `ModuleList`) that has parts of its own: a residual block, a
cell, a transformer block. A sequence of layers, a stem for example, is no block; a stage that holds a sequence of
blocks is opened. Composite children of the network itself count as well when they have weights (a patch embedding). A
network without two blocks is made of layers: those that have weights are its blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.search.proxies.network import batch_statistics, check_alive
from edgekd.search.proxy import Unscorable
from edgekd.search.sharing import shared

_SEQUENCES = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Flow:
    """One call of a block, its graph cut off from those of the others.

    Attributes:
        entered: A leaf that requires a gradient, (N, C, H, W) or (N, T, D).
        left: The output; it has no graph where it does not depend on the input.
    """

    entered: Tensor
    left: Tensor


def find_blocks(module: nn.Module) -> list[nn.Module]:
    """The blocks, in the order of registration."""
    blocks = list(_blocks(module))
    if len(blocks) > 1:
        return blocks
    return [part for part in module.modules() if any(weight.ndim > 1 for weight in part.parameters(recurse=False))]


def features(module: nn.Module, images: Tensor, measure: Callable[[Tensor], float]) -> list[float]:
    """`measure` of the first block's input and of every block's output, in the order in which they are computed.

    Args:
        module: Left as it was; BatchNorm normalises by the batch.
        images: (N, C, H, W).
        measure: Takes (N, C, H, W) or (N, T, D), without gradient, and leaves it as it is.

    Raises:
        Unscorable: Fewer than two such features, or logits that say nothing.
    """
    seen = _passed(module, images).features
    if len(seen) < 2:
        raise Unscorable("It has no two blocks that give feature maps or tokens.")
    return [measure(feature) for feature in seen]


def flows(module: nn.Module, images: Tensor) -> list[Flow]:
    """Every call of a block, with a graph from its output to its input; the graphs serve one backward pass.

    Args:
        module: Left as it was; BatchNorm normalises by the batch.
        images: (N, C, H, W).

    Raises:
        Unscorable: No block maps features to features, or logits that say nothing.
    """
    found = _passed(module, images).flows
    if not found:
        raise Unscorable("It has no block that maps feature maps or tokens to such.")
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class _Pass:
    """What one forward pass leaves behind, for `features` and for `flows`."""

    features: list[Tensor]
    flows: list[Flow]


@shared
def _passed(module: nn.Module, images: Tensor) -> _Pass:
    seen = _Pass(features=[], flows=[])
    entered: list[Tensor | None] = []

    def entering(block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        # The images themselves are no feature: a stem that is a block starts with its output.
        if not _is_feature(args) or args[0] is images:
            entered.append(None)
            return None
        if not seen.features:
            seen.features.append(args[0].detach())
        leaf = args[0].detach().requires_grad_()
        entered.append(leaf)
        # A copy goes on, for the block may begin with an activation in place.
        return (leaf.clone(), *args[1:])

    def leaving(block: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor | None:
        leaf = entered.pop()
        if not _is_feature((output,)):
            return None
        seen.features.append(output.detach())
        if leaf is not None:
            seen.flows.append(Flow(entered=leaf, left=output))
        going_on: Tensor = output.detach().clone()
        return going_on

    with batch_statistics(module), torch.enable_grad(), _hooked(find_blocks(module), entering, leaving):
        check_alive(module(images))
    return seen


def channels_first(x: Tensor) -> Tensor:
    """Feature maps (N, C, H, W), maps with the channels last (N, H, W, C), or tokens (N, T, D), as (N, C, H, W).

    The channels are last where only the first two of the three inner axes agree. Tokens become a map of T x 1 pixels.
    """
    if x.ndim == 3:
        return x.transpose(1, 2).unsqueeze(3)
    last = x.shape[1] == x.shape[2] != x.shape[3]
    return x.permute(0, 3, 1, 2) if last else x


def _blocks(parent: nn.Module) -> Iterator[nn.Module]:
    in_sequence = isinstance(parent, _SEQUENCES)
    for child in parent.children():
        if not _is_composite(child):
            continue
        if isinstance(child, _SEQUENCES) or _holds_blocks(child):
            yield from _blocks(child)
        elif in_sequence or next(child.parameters(), None) is not None:
            yield child


def _holds_blocks(module: nn.Module) -> bool:
    sequences = (part for part in module.modules() if isinstance(part, nn.Sequential))
    return any(_is_composite(item) and not isinstance(item, _SEQUENCES) for part in sequences for item in part)


def _is_composite(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


def _is_feature(values: tuple[Any, ...]) -> bool:
    return bool(values) and isinstance(values[0], Tensor) and values[0].ndim in (3, 4)


@contextmanager
def _hooked(blocks: list[nn.Module], entering: Callable[..., Any], leaving: Callable[..., Any]) -> Iterator[None]:
    handles = [block.register_forward_pre_hook(entering) for block in blocks]
    handles += [block.register_forward_hook(leaving) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
