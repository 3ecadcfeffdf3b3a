"""Counting: the baselines that any proxy has to beat.

On the 64 CIFAR ResNets of the DisWOT benchmark the number of parameters orders accuracy after distillation better than
every proxy published with it: see `edgekd.search.proxies.diswot`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from edgekd.nn.count import count_macs, count_params
from edgekd.nn.mode import evaluating
from edgekd.nn.shapes import example_images
from edgekd.search.proxy import Batch, Proxy, ScoreStudent, Unscorable

_PRODUCTS = frozenset({"convolution", "linear", "mkldnn_linear", "mm", "addmm", "bmm", "baddbmm"})


class Params(Proxy):
    """`score = number of parameters`. Capacity to store; the budget keeps it from growing without bound."""

    uses_weights: ClassVar[bool] = False
    formula: ClassVar[str] = "number of parameters"
    source: ClassVar[str] = "counting"

    def bind(self, teacher: nn.Module, batch: Batch) -> ScoreStudent:
        return lambda student: float(count_params(student))


class Macs(Proxy):
    """`score = multiply-accumulates of one image`. Work done per image, whatever the resolution it is done at."""

    uses_weights: ClassVar[bool] = False
    formula: ClassVar[str] = "multiply-accumulates of one image"
    source: ClassVar[str] = "counting"

    def bind(self, teacher: nn.Module, batch: Batch) -> ScoreStudent:
        return lambda student: float(count_macs(student, batch.input_shape))


class Capacity(Proxy):
    """`log sum_l n_l^(2/3)`, n_l the weights of layer l: what a network can store, with diminishing returns in a layer.

    The number of parameters is dominated by the widest layers, the number of layers ignores their size; this lies
    between the two. A weight has two or more axes; biases and normalisation do not count.
    """

    uses_weights: ClassVar[bool] = False
    formula: ClassVar[str] = "log sum_l n_l^(2/3), n_l the weights of layer l"
    source: ClassVar[str] = "counting"

    def bind(self, teacher: nn.Module, batch: Batch) -> ScoreStudent:
        return capacity


def capacity(module: nn.Module) -> float:
    """`log sum_l n_l^(2/3)` over the weights of two or more axes.

    Raises:
        Unscorable: It has none.
    """
    sizes = [parameter.numel() for parameter in module.parameters() if parameter.ndim > 1]
    if not sizes:
        raise Unscorable("It has no weights.")
    return math.log(math.fsum(size ** (2 / 3) for size in sizes))


class Activations(Proxy):
    """`score = elements that convolutions and matrix products write for one image`.

    It follows the run time on memory-bound devices more closely than multiply-accumulates do. Deviation: the authors
    count convolutions only, which would leave a transformer without any.
    """

    uses_weights: ClassVar[bool] = False
    formula: ClassVar[str] = "elements of the outputs of all convolutions and matrix products, for one image"
    source: ClassVar[str] = "Radosavovic, Kosaraju, Girshick, He and Dollar 2020, arXiv 2003.13678"

    def bind(self, teacher: nn.Module, batch: Batch) -> ScoreStudent:
        return lambda student: float(count_activations(student, batch.input_shape))


def count_activations(module: nn.Module, input_shape: tuple[int, int, int]) -> int:
    """Elements that convolutions and matrix products write in one image's forward pass.

    Args:
        module: Left as it was.
        input_shape: (C, H, W).
    """
    images = example_images(module, input_shape)
    written = _Written()
    with evaluating(module), torch.no_grad(), written:
        module(images)
    return written.elements


class _Written(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the outputs of products."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        output = func(*args, **dict(kwargs or {}))
        operator = func.overloadpacket.__name__.strip("_")
        if operator in _PRODUCTS:
            self.elements += output.numel()
        elif "scaled_dot_product" in operator:
            self.elements += output[0].numel()
        return output
