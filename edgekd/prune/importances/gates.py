"""Gates on what later layers read of each unit, and the gradients of a loss with respect to them, image by image.

Closing the gates of a unit, 1 to 0, is what masking does in the proof of a cut (`edgekd.nn.channels.proof`): the layers
that read the unit see zeros. So a gradient at 1 is the first-order effect of removing it, through branches,
concatenations and attention heads alike. What normalisations over channels would change is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from edgekd.errors import BuildFailed
from edgekd.nn.channels.apply import part_at
from edgekd.nn.channels.groups import ChannelGroup
from edgekd.nn.mode import evaluating
from edgekd.prune.importance import Evidence

Losses = Callable[[Tensor, Tensor, Tensor | None], Sequence[Tensor]]
"""(logits (N, K), images, labels) to scalars, each a sum over the images of something that concerns one image alone."""


def mean_over_images(
    evidence: Evidence,
    groups: Sequence[ChannelGroup],
    losses: Losses,
    of_image: Callable[[Sequence[Tensor]], Tensor],
) -> dict[str, Tensor]:
    """(units,) float64 by group name: the mean over all images of a function of each image's gate gradients.

    Args:
        evidence: With images.
        groups: Of its module.
        losses: See `Losses`.
        of_image: (N, units) gradients, one per loss, to (N, units).
    """
    sums = {group.name: torch.zeros(group.units, dtype=torch.float64) for group in groups}
    count = 0
    for images, labels in evidence.batches():
        found = gate_gradients(evidence.module, groups, images, partial(_on, losses, images, labels))
        for name in sums:
            sums[name] += of_image([gradients[name] for gradients in found]).sum(0)
        count += len(images)
    return {name: total / count for name, total in sums.items()}


def _on(losses: Losses, images: Tensor, labels: Tensor | None, logits: Tensor) -> Sequence[Tensor]:
    return losses(logits, images, labels)


def gate_gradients(
    module: nn.Module, groups: Sequence[ChannelGroup], images: Tensor, losses: Callable[[Tensor], Sequence[Tensor]]
) -> list[dict[str, Tensor]]:
    """For each loss, (N, units) float64 by group name: the derivative of each image's loss by the unit's gate.

    Args:
        module: In evaluation mode for the call; its parameters get no gradient.
        groups: Of the module.
        images: (N, C, H, W).
        losses: (N, K) logits to scalars, each a sum over the images.

    Raises:
        BuildFailed: A layer mixes the images of a batch, so that its input cannot be told apart by image.
    """
    readers = reading_layers(module, groups)
    with evaluating(module), _without_gradients(module), _gated(module, readers, len(images)) as gates:
        scalars = losses(module(images))
        flat = [gate for path in readers for gate in gates[path]]
        found = []
        for index, scalar in enumerate(scalars):
            gradients = torch.autograd.grad(
                scalar, flat, retain_graph=index + 1 < len(scalars), allow_unused=True, materialize_grads=True
            )
            by_reader = _by_reader(gates, gradients, len(images))
            found.append({group.name: _of_group(group, by_reader, len(images)) for group in groups})
    return found


def reading_layers(module: nn.Module, groups: Sequence[ChannelGroup]) -> dict[str, nn.Conv2d | nn.Linear]:
    """The layers that read units of the groups, by path, each once."""
    found: dict[str, nn.Conv2d | nn.Linear] = {}
    for group in groups:
        for member in group.members:
            part = part_at(module, member.path)
            if member.axis == "in" and isinstance(part, nn.Conv2d | nn.Linear):
                found[member.path] = part
    return found


def channel_axis(part: nn.Module) -> int:
    """The axis of a layer's input that its channels lie on."""
    return 1 if isinstance(part, nn.Conv2d) else -1


@contextmanager
def _without_gradients(module: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient inside of the block: only the gates are wanted, and their graph is smaller."""
    asked = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)


@contextmanager
def _gated(
    module: nn.Module, readers: dict[str, nn.Conv2d | nn.Linear], images: int
) -> Iterator[dict[str, list[Tensor]]]:
    """Every reader multiplies its input by gates of 1, one per row of its batch and channel; a list entry per call."""
    gates: dict[str, list[Tensor]] = {path: [] for path in readers}

    def gate(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        def multiply(part: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x, *others = args
            if len(x) % images:
                raise BuildFailed(
                    f"The layer {path} reads {len(x)} rows for {images} images, so that the rows of an image are not "
                    "known.",
                    hint="rank by weights alone: prune.importance=l2 or lamp",
                )
            shape = [1] * x.ndim
            shape[0], shape[channel_axis(part)] = len(x), x.shape[channel_axis(part)]
            ones = torch.ones(shape, dtype=x.dtype, device=x.device, requires_grad=True)
            gates[path].append(ones)
            return (x * ones, *others)

        return multiply

    handles = [part.register_forward_pre_hook(gate(path)) for path, part in readers.items()]
    try:
        yield gates
    finally:
        for handle in handles:
            handle.remove()


def _by_reader(gates: dict[str, list[Tensor]], gradients: Sequence[Tensor], images: int) -> dict[str, Tensor]:
    """(N, channels) float64 by path: calls of one layer, and rows of one image, added up."""
    waiting = iter(gradients)
    found: dict[str, Tensor] = {}
    for path, calls in gates.items():
        for _ in calls:
            gradient = next(waiting).double()
            rows = gradient.reshape(images, len(gradient) // images, -1).sum(1)
            found[path] = found[path] + rows if path in found else rows
    return found


def _of_group(group: ChannelGroup, by_reader: dict[str, Tensor], images: int) -> Tensor:
    found = torch.zeros(images, group.units, dtype=torch.float64)
    for member in group.members:
        if member.axis == "in" and member.path in by_reader:
            found.index_add_(1, member.units, by_reader[member.path].cpu()[:, member.channels])
    return found
