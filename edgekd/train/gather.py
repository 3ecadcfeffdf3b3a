"""What several processes that train one student owe each other: what each saw, and a gradient for every parameter."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


@torch.no_grad()
def gathered(x: Tensor) -> Tensor:
    """(sum of n, ...): the rows of every process in order of rank, without gradients; `x` itself for one process.

    The shares of a batch may differ by one row, so rows are padded for the exchange and cut afterwards.

    Args:
        x: (n, ...), of one shape but for n in all processes.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x.detach()
    world = dist.get_world_size()
    mine = torch.tensor([len(x)], device=x.device)
    sizes = [torch.zeros_like(mine) for _ in range(world)]
    dist.all_gather(sizes, mine)
    longest = max(int(size) for size in sizes)
    padded = x.new_zeros((longest, *x.shape[1:]))
    padded[: len(x)] = x.detach()
    parts = [torch.zeros_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(size)] for part, size in zip(parts, sizes, strict=True)])


def untouched(module: nn.Module) -> Tensor | float:
    """0, with a gradient of zero for each trainable parameter: DDP waits for those too that a step leaves out."""
    return sum((0.0 * parameter.sum() for parameter in module.parameters() if parameter.requires_grad), start=0.0)
