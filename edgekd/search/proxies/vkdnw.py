"""VKDNW: how evenly a batch informs about the weights of a random network, by the spectrum of Fisher's matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from edgekd.search.proxies.network import batch_statistics, check_alive, gaussian_like
from edgekd.search.proxy import Batch, Proxy, ScoreStudent, Unscorable

_SEED = 20250207
_IMAGES = 16
"""Of noise, whatever the batch: each costs as many backward passes as there are classes."""
_WEIGHTS = 128
"""Single weights whose Fisher matrix is taken."""
_DIRECTIONS = 10
"""Backward passes at most: one for each class, or random mixtures of more classes than that."""
_SMOOTHING = 0.05
"""Share of the uniform distribution in the probabilities, so that saturated logits still have a covariance."""
_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
"""Of `conv2d`, in order; `linear` has the first three."""


class VKDNW(Proxy):
    """`-sum_j q_j log q_j`, q the deciles of the eigenvalues of Fisher's matrix over their sum.

    F = E[J^T (diag p - p p^T) J], J the gradients of the logits at 128 single weights, spread over the convolutions and
    linear layers, p the smoothed probabilities, for Gaussian noise. It speaks of the shape of a network and hardly of
    its size; the authors add the number of layers to it. Deviations: BatchNorm normalises by the batch (the authors
    leave it out, by running statistics that nothing was run for); of more than ten classes ten random mixtures are
    taken, which have the same covariance on average.
    """

    uses_weights: ClassVar[bool] = True
    formula: ClassVar[str] = "-sum_j q_j log q_j, q = deciles of eig(Fisher matrix of 128 weights) / sum"
    source: ClassVar[str] = "Tybl and Neumann 2025, arXiv 2502.04975"

    def bind(self, teacher: nn.Module, batch: Batch) -> ScoreStudent:
        noise = gaussian_like(batch.images[:1].expand(_IMAGES, -1, -1, -1), seed=_SEED)
        return lambda student: decile_entropy(torch.linalg.eigvalsh(fisher_matrix(student, noise)))


def decile_entropy(eigenvalues: Tensor) -> float:
    """The entropy, in nats, of the nine inner deciles over their sum.

    Raises:
        Unscorable: All deciles are zero.
    """
    # Eigenvalues of one spectrum are known up to rounding of the largest.
    found = eigenvalues.double().clamp_min(0)
    found = torch.where(found > 1e-14 * found.max(), found, 0.0)
    deciles = torch.quantile(found, torch.arange(1, 10, dtype=torch.float64, device=found.device) / 10)
    if not bool(deciles.sum() > 0):
        raise Unscorable("The batch informs about hardly any of its weights.")
    return float(torch.special.entr(deciles / deciles.sum()).sum())


def fisher_matrix(module: nn.Module, images: Tensor, weights: int | None = None) -> Tensor:
    """(P, P) float64, P = `weights` or all that there are.

    Args:
        module: Left as it was.
        images: (N, C, H, W), N >= 2.
        weights: None takes 128, or half of the N (K - 1) that these images can tell apart.

    Raises:
        Unscorable: The logits say nothing, or no convolution or linear layer is called.
    """
    layers = _Nudged(2, [])
    with batch_statistics(module), torch.no_grad(), layers:
        classes = module(images[:2]).shape[1]
    if not layers.seen:
        raise Unscorable("It calls no convolution or linear layer.")
    # The matrix has rank N (K - 1) at most: of more weights than that, deciles would be zero for want of images.
    known = max(1, len(images) * min(classes - 1, _DIRECTIONS) // 2)
    nudged = _Nudged(len(images), _spread(weights or min(_WEIGHTS, known), layers.seen))
    with batch_statistics(module), torch.enable_grad(), nudged:
        logits = module(images)
    check_alive(logits)
    p = logits.detach().softmax(1) * (1 - _SMOOTHING) + _SMOOTHING / logits.shape[1]
    rows = []
    for direction in _mixtures(p):
        found = torch.autograd.grad(logits, nudged.nudges, direction, retain_graph=True, allow_unused=True)
        parts = [torch.zeros_like(x) if g is None else g for x, g in zip(nudged.nudges, found, strict=True)]
        rows.append(torch.cat(parts, dim=1))
    gradients = torch.cat(rows).double()
    return gradients.T @ gradients / len(images)


def _mixtures(p: Tensor) -> list[Tensor]:
    """Directions a, each (N, K), whose outer products sum to diag(p) - p p^T: columns of diag(sqrt p) - p sqrt(p)^T."""
    classes = p.shape[1]
    columns = torch.diag_embed(p.sqrt()) - p[:, :, None] * p.sqrt()[:, None, :]
    if classes <= _DIRECTIONS:
        return list(columns.unbind(2))
    generator = torch.Generator().manual_seed(_SEED)
    signs = (2.0 * torch.randint(2, (classes, _DIRECTIONS), generator=generator) - 1).to(p)
    return list((columns @ signs / math.sqrt(_DIRECTIONS)).unbind(2))


def _spread(weights: int, sizes: Sequence[int]) -> list[int]:
    """How many of `weights` each layer gets: equal shares, the first layers one more, none more than it has."""
    share, left = divmod(weights, len(sizes))
    return [min(size, share + (number < left)) for number, size in enumerate(sizes)]


class _Nudged(TorchFunctionMode):
    """Adds to single weights a nudge of zero that each sample has of its own, so that a backward pass gives the
    gradients of all samples at once.

    Args:
        samples: N.
        counts: Weights to nudge in each layer, in the order of the calls.

    Attributes:
        seen: Weights of each layer that was called.
        nudges: (N, weights) of each nudged layer.
    """

    def __init__(self, samples: int, counts: Sequence[int]) -> None:
        super().__init__()
        self._samples = samples
        self._counts = counts
        self.seen: list[int] = []
        self.nudges: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        output = func(*args, **dict(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name not in ("conv2d", "linear") or len(output) % self._samples:
            return output
        call = {**dict(zip(_ARGUMENTS, args, strict=False)), **dict(kwargs or {})}
        number, size = len(self.seen), call["weight"].numel()
        self.seen.append(size)
        count = self._counts[number] if number < len(self._counts) else 0
        if count == 0:
            return output
        places = torch.linspace(0, size - 1, count).long()
        channels, inputs = (_conv_inputs if name == "conv2d" else _linear_inputs)(call, places)
        nudge = torch.zeros(self._samples, count, dtype=output.dtype, device=output.device, requires_grad=True)
        self.nudges.append(nudge)
        repeated = nudge.repeat_interleave(len(output) // self._samples, dim=0)
        added = repeated.reshape(*repeated.shape, *(1,) * (inputs.ndim - 2)) * inputs
        axis = 1 if name == "conv2d" else output.ndim - 1
        return output.index_add(axis, channels, added if axis == 1 else added.movedim(1, -1))


def _conv_inputs(call: Mapping[str, Any], places: Tensor) -> tuple[Tensor, Tensor]:
    """Output channels of the weights at `places`, and (N, count, H, W): what each is multiplied by."""
    images, weight, groups = call["input"], call["weight"], call.get("groups", 1)
    filters, inner, height, width = weight.shape
    outer, offset = places // (inner * height * width), places // (height * width) % inner
    channels = outer // (filters // groups) * inner + offset
    kernels = F.one_hot(places % (height * width), height * width).to(images).reshape(-1, 1, height, width)
    chosen = images[:, channels].detach()
    frame = (call.get("stride", 1), call.get("padding", 0), call.get("dilation", 1))
    return outer, F.conv2d(chosen, kernels, None, *frame, groups=len(places))


def _linear_inputs(call: Mapping[str, Any], places: Tensor) -> tuple[Tensor, Tensor]:
    """The same for a linear layer: (N, count, ...)."""
    inner = call["weight"].shape[1]
    return places // inner, call["input"][..., places % inner].detach().movedim(-1, 1)
