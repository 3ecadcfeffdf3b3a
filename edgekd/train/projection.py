"""Training at projected weights: gradients are taken at P(w), and applied to w."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from edgekd.core.digest import Json


class WeightProjection(ABC):
    """Maps some weights of a module onto a set (a quantization grid), and back.

    The identity straight-through estimator: the gradient at P(w) updates w unchanged.
    """

    @abstractmethod
    def plain(self) -> Json:
        """Its options, as plain data."""

    @abstractmethod
    def bind(self, module: nn.Module) -> None:
        """Takes the module whose weights are projected, where it is trained (device and memory format). Called once."""

    @abstractmethod
    def project_(self) -> None:
        """Keeps w aside and writes P(w) into the module."""

    @abstractmethod
    def restore_(self) -> None:
        """Writes back the w that `project_` kept, bit for bit."""

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module has P(w) inside of the block, and w after it."""
        self.project_()
        try:
            yield
        finally:
            self.restore_()
