"""ImageNet-style residual networks, of basic blocks or of bottlenecks, for images above about 64 pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import JsonValue

from edgekd.search.space import GridSpace
from edgekd.search.spaces.pyramid import Pyramid

_BASIC = 1
_REDUCTIONS = (4, 2, _BASIC)
"""Channels of a block over those of the 3x3 convolution inside it; 1 stands for a basic block."""
_PYRAMID = Pyramid(stages=4, base=32, depths=(1, 2, 3, 4, 6))


class ResNetSpace(GridSpace):
    """Kind of block, depth of each of four stages, first width and its growth, around ResNet-18 and ResNet-26.

    The stem (7x7 and pooling) divides the resolution by 4, the stages by 8 more.
    """

    builder: ClassVar[str] = "edgekd:resnet"
    summary: ClassVar[str] = "ImageNet-style residual networks, basic or bottleneck blocks, for large images"

    def _axes(self) -> Mapping[str, Sequence[int]]:
        return {"reduction": _REDUCTIONS, **_PYRAMID.axes(self.task)}

    def _kwargs(self, choices: Mapping[str, int]) -> dict[str, JsonValue]:
        widths, reduction = _PYRAMID.widths_of(self.task, choices), choices["reduction"]
        inner = [] if reduction == _BASIC else [self.task.width(width / reduction) for width in widths]
        return {
            "depths": [*_PYRAMID.depths_of(choices)],
            "widths": [*widths],
            "inner": [*inner],
            "stem": choices["width"],
        }
