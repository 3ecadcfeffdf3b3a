"""Collects what the processes of a training saw: rows, for objectives that remember samples, and sums."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


@torch.no_grad()
def mean_over_processes(x: Tensor) -> Tensor:
    """The mean of what the processes have, without gradients; `x` itself for one process."""
    if not _several():
        return x.detach()
    total = x.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@torch.no_grad()
def gathered(x: Tensor) -> Tensor:
    """(sum of n, ...): the rows of every process in order of rank, without gradients; `x` itself for one process.

    The shares of a batch may differ by one row, so rows are padded for the exchange and cut afterwards.

    Args:
        x: (n, ...), of one shape but for n in all processes.
    """
    if not _several():
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
