"""Which memory format a network is trained in, and the networks for which the fast one computes wrong gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def trains_in_channels_last(module: nn.Module, device: torch.device) -> bool:
    """Whether a backward pass through the module in channels-last can be trusted.

    On x86 CPUs, oneDNN's weight gradient of strided 1x1 convolutions with fewer input channels than its block writes
    past its workspace when the input is channels-last: wrong gradients or a crash (uxlfoundation/oneDNN issue 6035,
    seen here with torch 2.14). Small residual networks have such convolutions in their shortcuts.
    """
    return device.type != "cpu" or not any(_overruns(part) for part in module.modules())


@contextmanager
def placed(module: nn.Module, device: torch.device, *, channels_last: bool) -> Iterator[None]:
    """The module is on a device and in a memory format inside of the block, on the CPU and contiguous afterwards."""
    module.to(device)
    if channels_last:
        module.to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        module.to("cpu")
        module.to(memory_format=torch.contiguous_format)


def _overruns(part: nn.Module) -> bool:
    return (
        isinstance(part, nn.Conv2d)
        and part.kernel_size == (1, 1)
        and max(part.stride) > 1
        and part.in_channels // part.groups < _channel_block()
    )


def _channel_block() -> int:
    """Channels that oneDNN's float32 kernels take at a time."""
    return 16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 8
