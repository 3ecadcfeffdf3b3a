"""Runs a network and returns the signals that an objective asked for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from edgekd.nn.mode import evaluating
from edgekd.nn.shapes import example_images
from edgekd.nn.taps import Taps
from edgekd.train.signal import TAPPED, Classifier, Signal, Signals, SignalSpec


class SignalSource(nn.Module):
    """A network whose forward pass returns `Signals`.

    Args:
        module: Maps images (N, C, H, W) to logits (N, K).
        needs: Signals to return; logits always are.
        input_shape: (C, H, W), to find where to tap.
        pixels: Applied to the images first; None feeds them as they are.
        order: (K,) int64, the place of each class in the network's logits; None for the network's own order.

    Attributes:
        compiled: Called in the module's place in training mode, where nothing beside the logits is needed; None calls
            the module (`edgekd.train.compilation`).

    Raises:
        UserError: A signal is needed that the network does not have.
    """

    _order: Tensor | None

    def __init__(
        self,
        module: nn.Module,
        needs: frozenset[Signal],
        input_shape: tuple[int, int, int],
        *,
        pixels: nn.Module | None = None,
        order: Tensor | None = None,
    ) -> None:
        super().__init__()
        self._pixels = pixels
        self.register_buffer("_order", order, persistent=False)
        self.taps = Taps(module, needs & TAPPED, input_shape)
        self._input_shape = input_shape
        self.compiled: Callable[[Tensor], Tensor] | None = None

    def forward(self, images: Tensor) -> Signals:
        images = images if self._pixels is None else self._pixels(images)
        if self.compiled is not None and self.training:
            return Signals(logits=self.compiled(images))
        out = self.taps(images)
        return Signals(
            logits=self._ordered(out.logits),
            embedding=out.embedding,
            feature_map=out.feature_map,
            class_maps=None if out.class_maps is None else self._ordered(out.class_maps),
            stages=out.stages,
            classifier=None if out.classifier is None else self._rows(*out.classifier),
        )

    def _ordered(self, of_classes: Tensor) -> Tensor:
        """Logits (N, K), or class maps (N, K, H, W), in the order that is asked for."""
        return of_classes if self._order is None else of_classes[:, self._order]

    def _rows(self, weight: Tensor, bias: Tensor | None) -> Classifier:
        """The classifier, a row per class in the order that is asked for."""
        if self._order is None:
            return Classifier(weight, bias)
        return Classifier(weight[self._order], None if bias is None else bias[self._order])

    @torch.no_grad()
    def example(self) -> Signals:
        """The signals of one black image, for their shapes."""
        with evaluating(self):
            out: Signals = self(example_images(self, self._input_shape))
        return out

    def spec(self) -> SignalSpec:
        """K and, of what is tapped, D, C and the shapes of the stages."""
        out = self.example()
        return SignalSpec(
            classes=out.logits.shape[1],
            width=None if out.embedding is None else out.embedding.shape[1],
            channels=None if out.feature_map is None else out.feature_map.shape[1],
            stages=None if out.stages is None else tuple((x.shape[1], x.shape[2], x.shape[3]) for x in out.stages),
        )
