"""Rounding that can be trained through: what Q/DQ pairs of a graph compute, with gradients for values and step sizes.

    forward    q = clamp(round(x / s) + z, low, high),   y = (q - z) s,   halves to even, as ONNX says
    backward   dy/dx = 1 inside of the range, 0 outside
               dy/ds = round(x / s) - x / s inside, low - z below, high - z above; times 1 / sqrt(n high)

Source: learned step size quantization (Esser et al. 2020, arXiv 1902.08153), n the values per step size (and image).
Two deviations. The zero point stays where calibration put it: a Q/DQ graph rounds it to a whole number, and where it is
0 with unsigned codes the lower bound of the range stands for a ReLU that the quantizer has absorbed. And the step size
is used by magnitude, so that no update makes it negative.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

SMALLEST_STEP = 1e-12
LARGEST_BIAS = 2**31 - 2**12
"""Largest code of a bias: of 32 bits, less what float32 may be off."""


class _FakeQuantize(torch.autograd.Function):
    """See the module; `step` and `zero` broadcast against `x`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, zero: Tensor, low: int, high: int, share: float) -> Tensor:
        scaled = x / step
        rounded = torch.round(scaled)
        lowest, highest = low - zero, high - zero
        codes = torch.minimum(torch.maximum(rounded, lowest), highest)
        ctx.save_for_backward(scaled, codes, rounded == codes)
        ctx.share, ctx.shape = share, step.shape
        return codes * step

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        scaled, codes, inside = ctx.saved_tensors  # type: ignore[attr-defined]
        of_x = grad * inside if ctx.needs_input_grad[0] else None  # type: ignore[attr-defined]
        of_step = None
        if ctx.needs_input_grad[1]:  # type: ignore[attr-defined]
            slope = codes - scaled * inside
            of_step = (grad * slope).sum_to_size(ctx.shape) * ctx.share  # type: ignore[attr-defined]
        return of_x, of_step, None, None, None, None


def fake_quantized(
    x: Tensor, step: Tensor, zero: Tensor, *, axis: int | None, low: int, high: int, batched: bool
) -> Tensor:
    """`x` on its grid, of the same shape.

    Args:
        x: Floating point.
        step: () or (C,): distance of neighbouring values.
        zero: Of the same shape: the code of 0, a whole number.
        axis: Of the C channels; None for one step size in all.
        low: Smallest code.
        high: Largest code.
        batched: The first axis of `x` is the batch.
    """
    positive = positive_step(step)
    if axis is not None:
        channels = [-1 if index == axis % x.ndim else 1 for index in range(x.ndim)]
        positive, zero = positive.reshape(channels), zero.reshape(channels)
    values = x.numel() / step.numel() / (len(x) if batched else 1)
    share = (values * high) ** -0.5
    made: Tensor = _FakeQuantize.apply(x, positive, zero.to(x.dtype), low, high, share)
    return made


def rounded_to(x: Tensor, step: Tensor) -> Tensor:
    """`x` at the nearest multiples of `step`; the gradient passes unchanged and none goes to the step."""
    made: Tensor = _Rounded.apply(x, positive_step(step.detach()))
    return made


def positive_step(step: Tensor) -> Tensor:
    """What is divided by: the magnitude, never zero."""
    return step.abs().clamp_min(SMALLEST_STEP)


def wide_step(step: Tensor, input_step: Tensor, bias: Tensor) -> Tensor:
    """Step sizes of a weight at which the bias of its layer, in steps of both, fits into 32-bit codes.

    Channels with next to no weights have tiny steps, and their bias may be any number. ONNX Runtime's quantizer widens
    steps by the same rule; here they must stay so while training moves all three. Gradients reach steps that are wide
    enough by themselves.

    Args:
        step: () or (O,), of the weight.
        input_step: One number.
        bias: (O,).
    """
    least = bias.detach().abs() / (positive_step(input_step.detach()) * LARGEST_BIAS)
    least = least.reshape(step.shape) if least.numel() == step.numel() else least.amax().reshape(step.shape)
    return torch.maximum(positive_step(step), least)


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor) -> Tensor:
        return torch.round(x / step) * step

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None
