"""Zen-score: how strongly a random network's features react to a small change of the image."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from edgekd.nn.taps import EMBEDDING, FEATURE_MAP, Taps
from edgekd.search.proxies.network import batch_statistics, check_alive, gaussian_like
from edgekd.search.proxies.operations import NORMS, Intercept
from edgekd.search.proxy import Batch, Proxy, ScoreStudent, Unscorable

_SEED = 20210201
_STEP = 0.01


class Zen(Proxy):
    """`log E||f(x) - f(x + 0.01 e)||_1 + sum_b log sqrt(mean var_b)`, x and e Gaussian noise, f the last feature map.

    The second term, over the inputs of all normalisation layers, restores the scale that they take out of f. Biases are
    zero and every weight of two or more axes is divided by its standard deviation, for the authors draw N(0, 1).
    Deviations: residual connections stay (the authors take them out); layers that do not normalise by the batch count
    with the variance that they divide by; without a feature map, f is the input of the classifier.
    """

    uses_weights: ClassVar[bool] = True
    formula: ClassVar[str] = "log E||f(x) - f(x + 0.01 e)||_1 + sum_b log sqrt(mean var_b), weights of unit deviation"
    source: ClassVar[str] = "Lin, Wang, Sun, Chen, Sun, Qian, Li and Jin 2021, arXiv 2102.01063"

    def bind(self, teacher: nn.Module, batch: Batch) -> ScoreStudent:
        noise = gaussian_like(batch.images, seed=_SEED)
        moved = noise + _STEP * gaussian_like(batch.images, seed=_SEED + 1)
        return lambda student: zen_score(student, noise, moved)


def zen_score(module: nn.Module, images: Tensor, moved: Tensor) -> float:
    """The score on given images (N, C, H, W) and the same images moved a little.

    Raises:
        UserError: The module has no classifier layer.
        Unscorable: It has a normalisation layer without anything to normalise, or its features do not react.
    """
    channels, height, width = images.shape[1:]
    taps = Taps(module, {EMBEDDING}, (channels, height, width))
    if taps.points is not None and taps.points.feature_map is not None:
        taps.want = frozenset({FEATURE_MAP})
    state = {name: _standardised(name, parameter.detach()) for name, parameter in taps.named_parameters()}
    variances: list[Tensor] = []

    def listen(name: str, x: Tensor) -> None:
        if name in NORMS:
            variances.append(_variance(name, x))

    with batch_statistics(module), torch.inference_mode():
        with Intercept(listen):
            before = functional_call(taps, state, (images,))
        after = functional_call(taps, state, (moved,))
    check_alive(before.logits)
    first, second = (x.embedding if x.feature_map is None else x.feature_map for x in (before, after))
    reaction = float((first - second).abs().flatten(1).sum(1).mean())
    scales = torch.stack(variances).double() if variances else torch.ones(1)
    if reaction == 0 or not bool((scales > 0).all()):
        raise Unscorable("Its features do not change with the image.")
    return math.log(reaction) + float(scales.log().sum()) / 2


def _standardised(name: str, parameter: Tensor) -> Tensor:
    if name.rpartition(".")[2] == "bias":
        return torch.zeros_like(parameter)
    deviation = parameter.std() if parameter.ndim > 1 else torch.ones(())
    return parameter / deviation if deviation > 0 else parameter


def _variance(name: str, x: Tensor) -> Tensor:
    """The mean variance of the input of a normalisation layer, over the values that it normalises together."""
    if name == "batch_norm":
        rows = x.transpose(0, 1).flatten(1)
    elif name in ("layer_norm", "rms_norm"):
        rows = x.flatten(0, -2)
    else:
        rows = x.flatten(1)
    return rows.var(1, correction=0).mean()
