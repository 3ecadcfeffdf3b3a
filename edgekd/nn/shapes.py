"""Inputs to probe a module with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgekd.nn.mode import evaluating


def example_images(module: nn.Module, input_shape: tuple[int, int, int], *, batch: int = 1) -> Tensor:
    """Zeros (N, C, H, W) on the device and in the type of the module's weights, or else of its buffers.

    Args:
        module: One without either is fed float32 on the CPU.
        input_shape: (C, H, W).
        batch: N.
    """
    held = [*module.parameters(), *module.buffers()]
    device = held[0].device if held else torch.device("cpu")
    dtype = next((x.dtype for x in held if x.is_floating_point()), torch.float32)
    return torch.zeros(batch, *input_shape, device=device, dtype=dtype)


def class_count(module: nn.Module, input_shape: tuple[int, int, int]) -> int:
    """K, from one forward pass over zeros; `module` is left as it was."""
    with evaluating(module), torch.inference_mode():
        return int(module(example_images(module, input_shape)).shape[-1])
