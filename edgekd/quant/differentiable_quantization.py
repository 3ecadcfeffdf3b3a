"""Differentiable quantization: the weights stay, and where the levels lie is learned (Polino et al. 2018, section 4).

    Q(v)_i = alpha_b p_c(i) + beta_b,   c(i) = argmin_j |u_i - p_j|,   u_i = (v_i - beta_b) / alpha_b
    dL/dp_j = sum over i with c(i) = j of alpha_b(i) dL/dQ_i

Source: Polino, Pascanu and Alistarh 2018, arXiv 1802.05668. The levels p of a tensor lie in [0, 1] and serve all its
buckets b, each with its range alpha and minimum beta. Deviations: weights, biases and BatchNorm's own parameters are
left alone, as in the paper, but only weights of convolutions and linear layers are quantized; assignments are found on
the training device (the authors' code copies every tensor to the host in each step); a level keeps its momentum when
two of them change places, because they are sorted where they are used and not where they are stored. And the learning
rate has another unit: levels are trained in the unit `1 / sqrt(n mean(alpha^2) / s)` (n weights, s levels), so that a
step moves the weights of a level by about lr times their mean gradient, in a tensor of any size, and one learning rate
serves all tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.utils import parametrize

from edgekd.core.schema import suggest
from edgekd.errors import UserError
from edgekd.nn.mode import evaluating
from edgekd.quant.bucket import Quantized, bucketed, decode
from edgekd.quant.quantized_distillation import quantizable_layers
from edgekd.tasks.classification import supervised_loss

Init = Literal["quantile", "uniform"]
MOST_POINTS = 256
"""What a code of one byte can number."""


class _Lookup(torch.autograd.Function):
    """`points[codes] * scale + offset`, with the gradient summed up by code."""

    @staticmethod
    def forward(ctx: Any, points: Tensor, codes: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
        ctx.save_for_backward(codes, scale)
        ctx.count = len(points)
        return points[codes] * scale + offset

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        codes, scale = ctx.saved_tensors  # type: ignore[attr-defined]
        weighted = (grads[0] * scale).reshape(-1)
        of_points = weighted.new_zeros(ctx.count)  # type: ignore[attr-defined]
        return of_points.scatter_add(0, codes.reshape(-1), weighted), None, None, None


def looked_up(points: Tensor, codes: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """(G, k) weights `points[codes] * scale + offset`.

    Args:
        points: (s,) levels; gradients flow to them and to nothing else.
        codes: (G, k) int64 in 0 ... s - 1.
        scale: (G, 1).
        offset: (G, 1).
    """
    made: Tensor = _Lookup.apply(points, codes, scale, offset)
    return made


def nearest(values: Tensor, points: Tensor) -> Tensor:
    """int64 indices of the nearest points, of the shape of `values`.

    Args:
        values: Floating point.
        points: (s,) ascending.
    """
    return torch.bucketize(values, (points[1:] + points[:-1]) / 2)


def first_points(values: Tensor, count: int, init: Init) -> Tensor:
    """(count,) ascending points in [0, 1]: evenly spaced, or the quantiles 0 ... 1 of the values.

    Args:
        values: Weights in units of their buckets' ranges.
        count: At least 2.
        init: How.
    """
    places = torch.linspace(0, 1, count, dtype=values.dtype, device=values.device)
    if init == "uniform":
        return places
    ordered = values.reshape(-1).sort().values
    at = places * (len(ordered) - 1)
    below = at.floor().long()
    above = (below + 1).clamp_max(len(ordered) - 1)
    return torch.lerp(ordered[below], ordered[above], at - below)


def shared_points(norms: Sequence[float], counts: Sequence[int]) -> tuple[int, ...]:
    """How many points each tensor gets when half of all are shared out by the norms of their gradients.

    `floor(s_l / 2)` stay, the rest is dealt in proportion to the norms, what rounding leaves to the largest remainders;
    the sum is that of `counts`, unless a tensor would get more than 256, which no byte numbers.

    Args:
        norms: One per tensor.
        counts: Points of each tensor before.
    """
    kept = [count // 2 for count in counts]
    pool, whole = sum(counts) - sum(kept), sum(norms)
    shares = [
        pool * (norm / whole if whole > 0 else count / sum(counts)) for norm, count in zip(norms, counts, strict=True)
    ]
    given = [int(share) for share in shares]
    order = sorted(range(len(shares)), key=lambda index: given[index] - shares[index])
    for index in order[: pool - sum(given)]:
        given[index] += 1
    return tuple(min(max(k + g, 2), MOST_POINTS) for k, g in zip(kept, given, strict=True))


class LearnedLevels(nn.Module):
    """A weight that stands on learned levels: a parametrization, see `torch.nn.utils.parametrize`.

    Args:
        weight: Any shape; its buckets, and its place in them, are fixed from here on.
        count: Number of levels.
        bucket_size: Values per bucket.
        init: Where levels begin.
    """

    def __init__(self, weight: Tensor, count: int, bucket_size: int, init: Init) -> None:
        super().__init__()
        values, scale, offset = bucketed(weight.detach(), bucket_size)
        self.shape = weight.shape
        shares = (values - offset) / scale
        unit = (shares.numel() * float(scale.pow(2).mean()) / count) ** -0.5
        self.unit = max(unit, 1e-6)
        self.scaled_points = nn.Parameter(first_points(self._real(shares), count, init) / self.unit)
        self.shares: Tensor
        self.scale: Tensor
        self.offset: Tensor
        # Not persistent: they follow from the weight, which the state dict holds.
        self.register_buffer("shares", shares, persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("offset", offset, persistent=False)

    def _real(self, values: Tensor) -> Tensor:
        """Without the filling of the last bucket."""
        return values.reshape(-1)[: self.shape.numel()]

    @property
    def points(self) -> Tensor:
        """(s,) the levels, ascending."""
        ordered: Tensor = (self.scaled_points * self.unit).sort().values
        return ordered

    def forward(self, _weight: Tensor) -> Tensor:
        points = self.points
        codes = nearest(self.shares, points.detach())
        return self._real(looked_up(points, codes, self.scale, self.offset)).reshape(self.shape)

    @torch.no_grad()
    def quantized(self) -> Quantized:
        """The weight as codes and levels; a level that no weight is near to is left out."""
        points = self.points
        codes = nearest(self.shares, points)
        used, codes = torch.unique(codes, return_inverse=True)
        if len(used) == 1:  # The codes of a file have two levels at least.
            first = int(used.clamp_max(len(points) - 2))
            used, codes = torch.arange(first, first + 2, device=codes.device), codes + used - first
        return Quantized(
            codes=codes.to(points.dtype).cpu(),
            scale=self.scale.cpu(),
            offset=self.offset.cpu(),
            steps=len(used) - 1,
            shape=self.shape,
            levels=points[used].cpu(),
        )


def learn_levels_(
    module: nn.Module, counts: Mapping[str, int], *, bucket_size: int, init: Init
) -> dict[str, LearnedLevels]:
    """Puts the weights of some layers on levels; afterwards nothing else of the module trains.

    Args:
        module: Changed in place.
        counts: Number of levels by the path of the layer.
        bucket_size: Values per bucket.
        init: Where levels begin.

    Returns:
        The parametrizations, by path.
    """
    module.requires_grad_(False)
    layers, made = quantizable_layers(module), {}
    for path, count in counts.items():
        weight = cast("nn.Parameter", layers[path].weight)
        made[path] = LearnedLevels(weight, count, bucket_size, init)
        parametrize.register_parametrization(layers[path], "weight", made[path])
    return made


@torch.no_grad()
def freeze_levels_(module: nn.Module, learned: Mapping[str, LearnedLevels]) -> dict[str, Quantized]:
    """Writes the quantized weights into ordinary parameters again; returns them as codes, by parameter name."""
    coded = {f"{path}.weight": levels.quantized() for path, levels in learned.items()}
    for path in learned:
        layer = module.get_submodule(path)
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
        cast("nn.Parameter", layer.weight).copy_(decode(coded[f"{path}.weight"]))
    module.requires_grad_(True)
    return coded


def chosen_layers(module: nn.Module, exclude: Iterable[str]) -> tuple[str, ...]:
    """Paths of the layers to quantize; one that shares its weight with an earlier one is left out.

    Raises:
        UserError: `exclude` names no layer, or all of them.
    """
    layers, excluded = quantizable_layers(module), set(exclude)
    for name in sorted(excluded - set(layers)):
        raise UserError(
            f"exclude names {name!r}, which is no convolution or linear layer of the student.{suggest(name, layers)}"
        )
    seen: set[int] = set()
    chosen = []
    for name, layer in layers.items():
        if name not in excluded and id(layer.weight) not in seen:
            chosen.append(name)
        seen.add(id(layer.weight))
    if not chosen:
        raise UserError(f"Nothing is left to quantize: all of {', '.join(layers) or '(none)'} are excluded.")
    return tuple(chosen)


def gradient_norms(module: nn.Module, paths: Sequence[str], batches: Iterable[tuple[Tensor, Tensor]]) -> list[float]:
    """Euclidean norm of the mean gradient of each layer's weight, in evaluation mode, at the weights as they are.

    The authors take the norms as they are, so a large tensor draws points from small ones; that is kept.

    Args:
        module: Left as it was.
        paths: Of the layers.
        batches: (images, labels).
    """
    weights = [cast("nn.Parameter", module.get_submodule(path).weight) for path in paths]
    sums = [torch.zeros_like(weight) for weight in weights]
    with evaluating(module), torch.enable_grad():
        for images, labels in batches:
            loss = supervised_loss(module(images), labels, 0.0)
            for total, grad in zip(sums, torch.autograd.grad(loss, weights), strict=True):
                total += grad
    return [float(total.norm()) for total in sums]
