"""What training-free proxies do to a random network, and how each of them leaves it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgekd.errors import UserError
from edgekd.nn.mode import evaluating
from edgekd.search.proxy import Batch, Unscorable
from edgekd.search.sharing import shared

_SAME = 1e-6
"""Logits that differ by less, relative to the largest, differ by rounding."""


@contextmanager
def batch_statistics(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, except that BatchNorm normalises by the batch: random networks have no running statistics.

    Running statistics are neither read nor moved.
    """
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    before = [norm.track_running_stats for norm in norms]
    with evaluating(module):
        for norm in norms:
            norm.training, norm.track_running_stats = True, False
        try:
            yield
        finally:
            for norm, tracked in zip(norms, before, strict=True):
                norm.track_running_stats = tracked


def check_alive(logits: Tensor) -> None:
    """Makes sure that the logits say something about the images.

    Args:
        logits: (N, K), N >= 2.

    Raises:
        Unscorable: They are not finite, or the same for all images.
    """
    seen = logits.detach()
    if not bool(torch.isfinite(seen).all()):
        raise Unscorable("Its logits overflow with random weights.")
    if bool((seen - seen[:1]).abs().max() <= _SAME * seen.abs().max()):
        raise Unscorable("Its logits are the same for all images: no path leads from the input to the output.")


def weights(module: nn.Module) -> list[Tensor]:
    """The trainable weights of convolutions and matrix products: parameters of two or more axes, each once."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad and parameter.ndim > 1]


@shared
def loss_gradients(module: nn.Module, batch: Batch) -> list[tuple[Tensor, Tensor]]:
    """(weight, gradient of the mean cross-entropy) for each of `weights` that the logits depend on.

    BatchNorm normalises by the batch. No `grad` of the module is touched.

    Raises:
        Unscorable: The logits say nothing, or no gradient comes back.
    """
    chosen = weights(module)
    with batch_statistics(module), torch.enable_grad():
        logits = module(batch.images)
        check_alive(logits)
        if not chosen or not logits.requires_grad:
            raise Unscorable("It has no trainable weights.")
        found = torch.autograd.grad(F.cross_entropy(logits, batch.labels), chosen, allow_unused=True)
    pairs = [(weight.detach(), grad) for weight, grad in zip(chosen, found, strict=True) if grad is not None]
    if not any(bool(grad.any()) for _, grad in pairs):
        raise Unscorable("No gradient of the loss reaches its weights.")
    return pairs


def halves(batch: Batch) -> tuple[Batch, Batch]:
    """The batch in two parts that do not depend on the order of its samples; each class is split evenly.

    Raises:
        UserError: Fewer than four images.
    """
    if len(batch.images) < 4:
        raise UserError(
            f"This proxy compares two halves of the batch and needs at least 4 images; got {len(batch.images)}.",
            hint="give a larger batch",
        )
    sums = batch.images.double().flatten(1).sum(1).tolist()
    labels = batch.labels.tolist()
    order = sorted(range(len(sums)), key=lambda sample: (labels[sample], sums[sample]))
    first, second = (torch.tensor(order[start::2], device=batch.images.device) for start in (0, 1))
    return (
        Batch(images=batch.images[first], labels=batch.labels[first]),
        Batch(images=batch.images[second], labels=batch.labels[second]),
    )


def gaussian_like(images: Tensor, *, seed: int) -> Tensor:
    """Standard normal noise of the same shape, type and device; equal seeds give equal noise."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return noise.to(images)


_NOISE_IMAGES = 8
_NOISE_POSITIONS = _NOISE_IMAGES * 32 * 32


@shared
def noise_batch(images: Tensor, *, seed: int) -> Tensor:
    """(n, C, H, W) of standard normal noise, in the size, type and device of the images, however many they are.

    For proxies whose value must not depend on the size of the batch, and to which positions are samples: n is 8 for
    images of up to 32 x 32 pixels, and falls to 2 for larger ones.
    """
    height, width = images.shape[2:]
    count = max(2, min(_NOISE_IMAGES, _NOISE_POSITIONS // (height * width)))
    return gaussian_like(images[:1].expand(count, -1, -1, -1), seed=seed)
