"""SynFlow: how much signal the paths of a network carry together, whatever the data."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from edgekd.nn.mode import evaluating
from edgekd.search.proxies.operations import ACTIVATIONS, NORMS, Intercept
from edgekd.search.proxy import Batch, Proxy, ScoreStudent, Unscorable

_LINEAR = ACTIVATIONS | NORMS


class SynFlow(Proxy):
    """`log sum_w |w * dR/dw|`, R the sum of the logits of an image of ones in the network linearised with |w|.

    Linearised: weights by their absolute values, biases zero, normalisation and activations left out. On positive
    signals activations are the identity, except that ReLU6 would saturate; normalisation would undo the scale that is
    measured (the authors of arXiv 2101.08134 remove it as well). The sum runs over weights of two or more axes.
    Deviation: the logarithm, which keeps the order and a mean over seeds that no single draw dominates.
    """

    uses_weights: ClassVar[bool] = True
    formula: ClassVar[str] = "log sum_w |w * dR/dw|, R = sum(logits(ones; |w|)), linearised, float64"
    source: ClassVar[str] = "Tanaka, Kunin, Yamins and Ganguli 2020, arXiv 2006.05467"

    def bind(self, teacher: nn.Module, batch: Batch) -> ScoreStudent:
        ones = torch.ones_like(batch.images[:1], dtype=torch.float64)
        return lambda student: _log_flow(student, ones)


def synaptic_flow(module: nn.Module, ones: Tensor) -> float:
    """`sum_w |w * dR/dw|`.

    Args:
        module: Left as it was.
        ones: (1, C, H, W) float64.
    """
    state = {name: _linear(name, tensor) for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    chosen = [value for value in state.values() if value.requires_grad]
    with evaluating(module), torch.enable_grad(), Intercept(lambda name, x: x if name in _LINEAR else None):
        flow = functional_call(module, state, (ones,)).sum()
    if not chosen or not flow.requires_grad:
        return 0.0
    found = torch.autograd.grad(flow, chosen, allow_unused=True)
    pairs = [(weight.detach(), grad) for weight, grad in zip(chosen, found, strict=True) if grad is not None]
    return sum(float((weight * grad).abs().sum()) for weight, grad in pairs)


def _linear(name: str, tensor: Tensor) -> Tensor:
    """A parameter or buffer as the linearised network has it; those whose flow is summed require a gradient."""
    value = tensor.detach()
    if not value.is_floating_point() or not isinstance(tensor, nn.Parameter):
        return value.double() if value.is_floating_point() else value
    if name.rpartition(".")[2] == "bias":
        return torch.zeros_like(value, dtype=torch.float64)
    return value.double().abs().requires_grad_(value.ndim > 1)


def _log_flow(module: nn.Module, ones: Tensor) -> float:
    flow = synaptic_flow(module, ones)
    if flow == 0:
        raise Unscorable("No signal flows from its input to its output.")
    if not math.isfinite(flow):
        raise Unscorable("Its synaptic flow exceeds float64.")
    return math.log(flow)
