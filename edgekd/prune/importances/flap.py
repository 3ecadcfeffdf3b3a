"""How much of what later layers see of a unit varies from image to image: no labels, no gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from edgekd.nn.channels.groups import ChannelGroup
from edgekd.nn.mode import evaluating
from edgekd.prune.importance import Evidence, Importance, Need
from edgekd.prune.importances.gates import channel_axis, reading_layers


class Flap(Importance):
    """The variance that a unit brings into the layers that read it, over images and pixels.

    A unit that always says the same can be replaced by a constant, which the recovery's BatchNorm statistics and biases
    supply; the paper adds that constant to a bias, which many convolutions here do not have. Deviation: by units of
    convolutional groups as well; the paper prunes heads and neurons of language models.
    """

    name = "flap"
    needs: ClassVar = frozenset({Need.IMAGES})
    formula = "sum over r of Var(a_u) * ||W_r[:, u]||_2^2"
    source = "An et al. 2023 (FLAP), arXiv 2312.11983"

    def scores(self, evidence: Evidence, groups: Sequence[ChannelGroup]) -> dict[str, Tensor]:
        readers = reading_layers(evidence.module, groups)
        moments = _moments(evidence, readers)
        found = {}
        for group in groups:
            scores = torch.zeros(group.units, dtype=torch.float64)
            for member in group.members:
                if member.axis == "in" and member.path in moments:
                    power = _read_power(readers[member.path]) * moments[member.path]
                    scores.index_add_(0, member.units, power[member.channels])
            found[group.name] = scores
        return found


def _moments(evidence: Evidence, readers: dict[str, nn.Conv2d | nn.Linear]) -> dict[str, Tensor]:
    """(channels,) float64 variance of each reader's input, by path; readers that never ran are left out."""
    sums: dict[str, list[Tensor]] = {}

    def watch(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(part: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].detach().double().movedim(channel_axis(part), 0).flatten(1).cpu()
            new = [torch.tensor(x.shape[1], dtype=torch.float64), x.sum(1), x.square().sum(1)]
            sums[path] = [a + b for a, b in zip(sums[path], new, strict=True)] if path in sums else new

        return add

    handles = [part.register_forward_pre_hook(watch(path)) for path, part in readers.items()]
    try:
        with evaluating(evidence.module), torch.inference_mode():
            for images, _ in evidence.batches():
                evidence.module(images)
    finally:
        for handle in handles:
            handle.remove()
    return {path: (squares / n - (total / n).square()).clamp_min(0) for path, (n, total, squares) in sums.items()}


def _read_power(part: nn.Conv2d | nn.Linear) -> Tensor:
    """(in channels,) float64: squared weights that read each channel."""
    return part.weight.detach().cpu().double().square().transpose(0, 1).flatten(1).sum(1)
