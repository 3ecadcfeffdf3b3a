"""The moving average of the weights, and BatchNorm statistics for weights that never saw a batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgekd.nn.mode import evaluating


class WeightAverage:
    """Exponential moving average of the trainable parameters, with a decay that rises at the start.

    Step t uses min(decay, (1 + t) / (10 + t)), so that the random start is forgotten early.

    Args:
        module: Its parameters are averaged.
        decay: Upper limit of the decay per step.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self._decay = decay
        self.values: list[Tensor] = [p.detach().clone() for p in self._parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes the weights after a step, counted from 0."""
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        for value, parameter in zip(self.values, self._parameters, strict=True):
            value.lerp_(parameter, share)

    @torch.no_grad()
    def load(self, values: Sequence[Tensor]) -> None:
        """Takes over the values of an interrupted run."""
        for mine, given in zip(self.values, values, strict=True):
            mine.copy_(given)

    @torch.no_grad()
    def write_(self) -> None:
        """Replaces the module's parameters by their average."""
        for parameter, value in zip(self._parameters, self.values, strict=True):
            parameter.copy_(value)


@torch.no_grad()
def gather_statistics_(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replaces every BatchNorm's running statistics by the plain mean over `batches` of images.

    Only BatchNorm is in training mode meanwhile, so dropout does not disturb the statistics. A module without
    BatchNorm is left alone.
    """
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    with evaluating(module):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # cumulative average
            norm.training = True
        for images in batches:
            module(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
