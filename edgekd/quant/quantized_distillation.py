"""Quantized distillation: a student that is trained at its quantized weights.

Each step runs forward and backward at Q(w) and applies the gradient to w (Polino, Pascanu and Alistarh 2018, arXiv
1802.05668); BatchNorm statistics are thus gathered with the weights that will be deployed. The training loop is the
ordinary one, this file only says what Q is and what it applies to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from edgekd.core.digest import Json
from edgekd.core.schema import suggest
from edgekd.core.text import percent
from edgekd.errors import UserError
from edgekd.nn.mode import evaluating
from edgekd.nn.shapes import example_images
from edgekd.nn.taps import find_tap_points
from edgekd.quant.bucket import Quantized, Rounding, WeightGrid, projected, quantized
from edgekd.train.projection import WeightProjection

QUANTIZABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
SHOWN = 8


class QuantizedWeights(WeightProjection):
    """Projects the weights of convolutions and linear layers onto a grid.

    Biases, normalisation and embeddings are never quantized, and neither are the excluded layers, nor weights that
    belong to no layer of their own, such as the packed projections of `nn.MultiheadAttention`; see `left_float`.

    Deviations from the authors' code: layers are excluded by module and not by parameter index (which spares the
    output's bias instead of its weight), and biases and BatchNorm stay float32. Their gradient variants are left out:
    the identity is what all their runs use, `truncated` needs weights in [-1, 1], and the gradient through a bucket's
    extremes reaches two weights of 256.

    Args:
        grid: The set of levels.
        exclude: Paths of modules that stay as they are.
        rounding: Of the weights that a step is taken at; the final ones are always the nearest.
    """

    def __init__(self, grid: WeightGrid, exclude: Sequence[str], rounding: Rounding = "nearest") -> None:
        self.grid = grid
        self.rounding: Rounding = rounding
        self.exclude = tuple(sorted(exclude))
        self.names: tuple[str, ...] = ()
        self._weights: list[nn.Parameter] = []
        self._masters: list[Tensor] = []

    def plain(self) -> Json:
        return {"grid": self.grid.plain(), "exclude": list(self.exclude), "rounding": self.rounding}

    def bind(self, module: nn.Module) -> None:
        layers = quantizable_layers(module)
        for name in self.exclude:
            if name not in layers:
                raise UserError(
                    f"exclude names {name!r}, which is no convolution or linear layer of the student."
                    f"{suggest(name, layers)}"
                )
        # A weight that two layers share is projected once.
        chosen = {
            cast("nn.Parameter", layer.weight): f"{name}.weight"
            for name, layer in layers.items()
            if name not in self.exclude
        }
        if not chosen:
            raise UserError(
                f"Nothing is left to quantize: of the layers {', '.join(layers) or '(none)'} are excluded "
                f"{', '.join(self.exclude) or '(none)'}."
            )
        self.names = tuple(chosen.values())
        self._weights = list(chosen)
        self._masters = [weight.detach().clone() for weight in self._weights]

    @torch.no_grad()
    def project_(self) -> None:
        self._project_("nearest")

    @contextmanager
    def applied(self) -> Iterator[None]:
        self._project_(self.rounding)
        try:
            yield
        finally:
            self.restore_()

    @torch.no_grad()
    def _project_(self, rounding: Rounding) -> None:
        for weight, master in zip(self._weights, self._masters, strict=True):
            master.copy_(weight)
            weight.copy_(projected(weight, self.grid, rounding))

    @torch.no_grad()
    def restore_(self) -> None:
        for weight, master in zip(self._weights, self._masters, strict=True):
            weight.copy_(master)

    @torch.no_grad()
    def codes(self) -> dict[str, Quantized]:
        """What the weights were decoded from when they were last projected, by parameter name."""
        return {name: quantized(master, self.grid) for name, master in zip(self.names, self._masters, strict=True)}


def quantizable_layers(module: nn.Module) -> dict[str, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear]:
    """Convolutions and linear layers by path, in the order of definition."""
    return {name: part for name, part in module.named_modules() if isinstance(part, QUANTIZABLE)}


def left_float(module: nn.Module) -> str:
    """A sentence that names the tables of numbers outside of those layers, which nothing quantizes; "" without."""
    layers = {id(layer.weight) for layer in quantizable_layers(module).values()}
    parameters = dict(module.named_parameters())
    found = {
        name: value.numel()
        for name, value in parameters.items()
        if sum(size > 1 for size in value.shape) > 1 and id(value) not in layers
    }
    if not found:
        return ""
    share = sum(found.values()) / sum(value.numel() for value in parameters.values())
    shown = ", ".join(list(found)[:SHOWN]) + (f" and {len(found) - SHOWN} more" if len(found) > SHOWN else "")
    return f" No weights of these layers, and float32 too: {shown}, {percent(share)} of all parameters."


def outer_layers(module: nn.Module, input_shape: tuple[int, int, int]) -> tuple[str, ...]:
    """Paths of the first layer that runs and of the classifier: few weights, and those that suffer most from few bits.

    Args:
        module: Images to logits; left as it was.
        input_shape: (C, H, W).
    """
    names = {part: name for name, part in quantizable_layers(module).items()}
    ran: list[str] = []
    handles = [part.register_forward_pre_hook(lambda part, _: ran.append(names[part])) for part in names]
    try:
        with evaluating(module), torch.no_grad():
            module(example_images(module, input_shape))
    finally:
        for handle in handles:
            handle.remove()
    return tuple(dict.fromkeys([*ran[:1], find_tap_points(module, input_shape).classifier]))
