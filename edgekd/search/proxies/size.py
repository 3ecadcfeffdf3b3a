"""Counting: the baselines that any proxy has to beat.

On the 64 CIFAR ResNets of the DisWOT benchmark the number of parameters orders accuracy after distillation better than
every proxy published with it: see `edgekd.search.proxies.diswot`.
"""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from edgekd.nn.count import count_macs, count_params
from edgekd.search.proxy import Batch, Proxy, ScoreStudent


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
