"""N:M sparsity: of every M weights along the input channels at most N are not zero, during training and after it.

The pattern is the one that sparse tensor cores take (Mishra et al. 2021, arXiv 2104.08378): for each output channel and
each position of the kernel, 2 of 4 neighbouring input channels. The mask is taken once, by magnitude of the trained
weights, and training goes on with it, as there. Nothing gets smaller or faster by zeros alone: a runtime has to have
kernels for them, and has to choose these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from edgekd.core.digest import Json
from edgekd.core.schema import suggest
from edgekd.errors import UserError
from edgekd.train.projection import WeightProjection


def n_of_m_mask(weight: Tensor, n: int, m: int) -> Tensor:
    """Bool of the weight's shape: true at the `n` largest magnitudes of every `m` along axis 1; ties keep the first.

    Args:
        weight: (out, in, ...) with `in` a multiple of `m`.
    """
    grouped = _in_groups(weight.detach().abs(), m)
    largest = grouped.argsort(dim=-1, descending=True, stable=True)[..., :n]
    mask = torch.zeros_like(grouped, dtype=torch.bool).scatter_(-1, largest, True)
    return mask.flatten(-2).movedim(-1, 1)


def follows_pattern(weight: Tensor, n: int, m: int) -> bool:
    """Whether at most `n` of every `m` weights along axis 1 are not zero."""
    return bool(((_in_groups(weight.detach(), m) != 0).sum(-1) <= n).all())


def _in_groups(weight: Tensor, m: int) -> Tensor:
    """(out, ..., in / m, m)."""
    last = weight.movedim(1, -1)
    return last.reshape(*last.shape[:-1], last.shape[-1] // m, m)


def layers_by_fitness(
    module: nn.Module, m: int, exclude: Sequence[str]
) -> tuple[dict[str, nn.Conv2d | nn.Linear], dict[str, str]]:
    """The layers that can hold the pattern, by path, and the reason by path for each dense layer that stays as it is.

    Raises:
        UserError: `exclude` names something that is no convolution or linear layer.
    """
    layers = {path: part for path, part in module.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)}
    for path in exclude:
        if path not in layers:
            raise UserError(
                f"exclude names {path!r}, which is no convolution or linear layer of the student."
                f"{suggest(path, layers)}"
            )
    fit, stay = {}, {}
    for path, part in layers.items():
        inputs = part.weight.shape[1]
        if path in exclude:
            stay[path] = "excluded"
        elif isinstance(part, nn.Conv2d) and part.groups > 1:
            stay[path] = f"a convolution of {part.groups} groups"
        elif inputs % m:
            stay[path] = f"{inputs} input channels are no multiple of {m}"
        else:
            fit[path] = part
    return fit, stay


class SparseWeights(WeightProjection):
    """Holds the weights of dense convolutions and linear layers to a mask that is taken when training begins.

    Args:
        n: Weights that may differ from zero.
        m: Of so many neighbours along the input channels.
        exclude: Paths of modules that stay dense.

    Attributes:
        names: Paths of the sparse layers, after `bind`.
        stayed: Reason by path of each layer that stayed dense, after `bind`.
    """

    def __init__(self, n: int, m: int, exclude: Sequence[str] = ()) -> None:
        self.n, self.m, self.exclude = n, m, tuple(sorted(exclude))
        self.names: tuple[str, ...] = ()
        self.stayed: Mapping[str, str] = {}
        self._weights: list[nn.Parameter] = []
        self._masks: list[Tensor] = []
        self._masters: list[Tensor] = []

    def plain(self) -> Json:
        return {"pattern": f"{self.n}:{self.m}", "exclude": list(self.exclude)}

    def bind(self, module: nn.Module) -> None:
        fit, self.stayed = layers_by_fitness(module, self.m, self.exclude)
        if not fit:
            reasons = "; ".join(f"{path}: {why}" for path, why in self.stayed.items()) or "there are no such layers"
            raise UserError(f"No layer of the student can hold {self.n}:{self.m} sparsity ({reasons}).")
        self.names = tuple(fit)
        # A weight that two layers share is masked once.
        self._weights = list(dict.fromkeys(module.get_parameter(f"{path}.weight") for path in fit))
        self._masks = [n_of_m_mask(weight, self.n, self.m) for weight in self._weights]
        self._masters = [weight.detach().clone() for weight in self._weights]

    @torch.no_grad()
    def project_(self) -> None:
        for weight, mask, master in zip(self._weights, self._masks, self._masters, strict=True):
            master.copy_(weight)
            weight.mul_(mask)

    @torch.no_grad()
    def restore_(self) -> None:
        for weight, master in zip(self._weights, self._masters, strict=True):
            weight.copy_(master)
