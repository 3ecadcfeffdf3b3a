"""Quantization of weights, per output channel or by buckets (Polino, Pascanu and Alistarh 2018).

A quantized tensor is given by codes and one scale (and offset) per group, and by its levels where those are not evenly
spaced; `decode` is the only place that turns them into weights, so what is trained, what is stored and what is loaded
are the same bits. Activations are not this file's business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from edgekd.core.schema import Schema

Bits = Literal[2, 3, 4, 8]
Granularity = Literal["channel", "bucket"]
Rounding = Literal["nearest", "stochastic"]
REDUCED_STEPS = 64
"""Largest code of ONNX Runtime's quantizer with `reduce_range`."""
_SMALLEST_RANGE = 1e-10


class WeightGrid(Schema):
    """On which grid weights live.

    `bucket` is the paper's: runs of `bucket_size` consecutive values, each with 2^bits levels from its smallest to its
    largest value. `channel` has one symmetric grid per output channel, `scale * {-m ... m}` with m = 2^(bits - 1) - 1:
    it holds zero, survives the folding of BatchNorm into the convolution, and at 8 bits it is the grid of integer
    kernels, so that a later INT8 quantization of the same range leaves the weights where they are. With `reduce_range`
    m = 64 at 8 bits: the range that INT8 takes where x86 CPUs without VNNI would saturate.

    Attributes:
        bits: Per weight.
        granularity: What shares a scale.
        bucket_size: Values per bucket.
        reduce_range: At 8 bits per channel alone: see above.
    """

    bits: Bits = 8
    granularity: Granularity = "channel"
    bucket_size: int = Field(default=256, ge=2)
    reduce_range: bool = False

    @model_validator(mode="after")
    def _reduces_bytes_of_channels(self) -> Self:
        if self.reduce_range and (self.bits, self.granularity) != (8, "channel"):
            raise ValueError(f"reduce_range is for 8 bits per channel, not for {self.bits} per {self.granularity}")
        return self

    @property
    def steps(self) -> int:
        """Distances between neighbouring levels: of the range for buckets, of its half for channels."""
        if self.reduce_range:
            return REDUCED_STEPS
        return 2**self.bits - 1 if self.granularity == "bucket" else 2 ** (self.bits - 1) - 1


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """A tensor on a grid.

    Attributes:
        codes: (G, k) whole numbers in the weights' type: 0 ... steps for buckets, -steps ... steps for channels.
        scale: (G, 1): a bucket's range, a channel's largest magnitude divided by `steps`.
        offset: (G, 1), a bucket's smallest value; None for channels.
        steps: As of the grid.
        shape: Of the tensor; what the last bucket has beyond it is filling.
        levels: (steps + 1,) ascending values between 0 and a bucket's range, in units of the range, that the codes
            number; None for evenly spaced ones. With buckets only.
    """

    codes: Tensor
    scale: Tensor
    offset: Tensor | None
    steps: int
    shape: torch.Size
    levels: Tensor | None = None

    @property
    def bits(self) -> int:
        """The fewest bits that tell all codes apart."""
        return max(1, (self.steps if self.offset is not None else 2 * self.steps).bit_length())


def quantized(weight: Tensor, grid: WeightGrid, rounding: Rounding = "nearest") -> Quantized:
    """Points of the grid.

    Args:
        weight: (O, ...) floating point, O the output channels.
        grid: The set of levels.
        rounding: `nearest`, halves to even; `stochastic`: one of the two neighbours, so that the mean is the weight
            (Polino et al., section 2), by torch's global generator.
    """
    steps, rounded = grid.steps, _ROUNDINGS[rounding]
    if grid.granularity == "channel":
        values = weight.reshape(len(weight), -1)
        scale = _usable(values.abs().amax(1, keepdim=True) / steps)
        codes = rounded(values / scale).clamp(-steps, steps)
        return Quantized(codes=codes, scale=scale, offset=None, steps=steps, shape=weight.shape)
    values, scale, offset = bucketed(weight, grid.bucket_size)
    codes = rounded((values - offset) / scale * steps).clamp(0, steps)
    return Quantized(codes=codes, scale=scale, offset=offset, steps=steps, shape=weight.shape)


def decode(q: Quantized) -> Tensor:
    """The weights: `codes * scale` for channels, `codes / steps * scale + offset` for buckets, with `levels[codes]` in
    the place of `codes / steps` where there are levels.
    """
    if q.offset is None:
        return (q.codes * q.scale).reshape(q.shape)
    shares = q.codes / q.steps if q.levels is None else q.levels[q.codes.long()]
    values = shares * q.scale + q.offset
    return values.reshape(-1)[: q.shape.numel()].reshape(q.shape)


def projected(weight: Tensor, grid: WeightGrid, rounding: Rounding = "nearest") -> Tensor:
    """Q(w): weights on the grid, of the same shape and type."""
    return decode(quantized(weight, grid, rounding))


def bucketed(weight: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """(G, k) values in buckets of at most `size`, (G, 1) ranges, 1 for a bucket of equal values, (G, 1) minima."""
    values = _buckets(weight, size)
    offset = values.amin(1, keepdim=True)
    return values, _usable(values.amax(1, keepdim=True) - offset), offset


def _buckets(weight: Tensor, size: int) -> Tensor:
    """(G, k): the values in order, the tail filled up with the last one; a small tensor is one short bucket."""
    values = weight.reshape(-1)
    size = min(size, len(values))
    missing = -len(values) % size
    return torch.cat([values, values[-1:].expand(missing)]).reshape(-1, size)


def _usable(scale: Tensor) -> Tensor:
    """1 where all values of a group are equal, so that nothing is divided by zero."""
    return torch.where(scale < _SMALLEST_RANGE, torch.ones_like(scale), scale)


_ROUNDINGS: Mapping[Rounding, Callable[[Tensor], Tensor]] = {
    "nearest": torch.round,
    "stochastic": lambda x: (x + torch.rand_like(x)).floor(),
}
