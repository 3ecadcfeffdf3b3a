"""Ranges of activations that follow a training as moving averages, and stand still in its last part.

    s_batch = max(max(x) / (high - z), min(x) / (low - z)),    s <- s + (1 - m) (s_batch - s)

Source: Jacob et al. 2018 (arXiv 1712.05877), section 3.1, with the frozen end that PyTorch's and TensorFlow's recipes
add, so that the weights settle on the grid that is deployed. Deviations: the averages begin with the calibrated ranges
and not with the first batch, and the zero point stays where calibration put it, so one number per quantizer is followed
and not two. A range without clipping is what extremes ask for; `learned` step sizes may clip.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

MOMENTUM = 0.99
FROZEN_SHARE = 0.5
"""Of the steps of a training: in the last half the ranges stand still."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Where an activation is quantized.

    Attributes:
        step: Initialiser of its step size.
        zero: Initialiser of its zero point, "" for 0.
        low: Smallest code.
        high: Largest code.
    """

    step: str
    zero: str
    low: int
    high: int


class RangeAverages(nn.Module):
    """Follows the values that are quantized in training steps.

    Args:
        steps: Training steps that are followed; after them the ranges stand still.

    Attributes:
        followed: Steps so far; part of a checkpoint.
    """

    followed: Tensor

    def __init__(self, steps: int) -> None:
        super().__init__()
        self._steps = steps
        self.register_buffer("followed", torch.zeros((), dtype=torch.int64))

    @property
    def active(self) -> bool:
        """Whether the next step is followed."""
        return int(self.followed) < self._steps

    @torch.no_grad()
    def follow_(
        self, seen: Mapping[str, tuple[Tensor, Tensor]], grids: Mapping[str, tuple[Tensor, Tensor, Grid]]
    ) -> None:
        """Moves the step sizes, in place.

        Args:
            seen: Smallest and largest value of the batch, by activation.
            grids: (step, zero point, grid) by activation; steps of one number each.
        """
        for name, (low, high) in seen.items():
            step, zero, grid = grids[name]
            below, above = float(grid.low - zero), float(grid.high - zero)
            wanted = max(float(high) / above if above > 0 else 0.0, float(low) / below if below < 0 else 0.0)
            if wanted > 0:
                step.add_((1 - MOMENTUM) * (wanted - step))
        self.followed += 1
