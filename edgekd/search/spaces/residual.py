"""Residual networks of basic blocks: dense 3x3 convolutions, which CPUs and GPUs run close to their peak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import JsonValue

from edgekd.search.space import GridSpace
from edgekd.search.spaces.pyramid import Pyramid

_DEPTHS = (1, 2, 3, 4, 5, 7)


class ResidualSpace(GridSpace):
    """Depth of each stage, first width and its growth, stride of the stem, around the CIFAR and ImageNet ResNets.

    The number of stages follows the input: 2 up to 16 pixels, 3 up to 64, 4 above. For images of CIFAR's size, the
    networks of `diswot-s0` lie inside.
    """

    builder: ClassVar[str] = "edgekd:residual"
    summary: ClassVar[str] = "residual networks of basic blocks, for small and medium images"

    def _axes(self) -> Mapping[str, Sequence[int]]:
        pyramid, strides = self._frame()
        return {"stem_stride": strides, **pyramid.axes(self.task)}

    def _kwargs(self, choices: Mapping[str, int]) -> dict[str, JsonValue]:
        pyramid, _ = self._frame()
        return {
            "stem_stride": choices["stem_stride"],
            "depths": [*pyramid.depths_of(choices)],
            "widths": [choices["width"], *pyramid.widths_of(self.task, choices)],
        }

    def _frame(self) -> tuple[Pyramid, tuple[int, ...]]:
        """(stages, strides of the stem from cheap to expensive)."""
        if self.task.side <= 16:
            return Pyramid(stages=2, base=16, depths=_DEPTHS), (1,)
        if self.task.side <= 64:
            return Pyramid(stages=3, base=16, depths=_DEPTHS), (2, 1)
        return Pyramid(stages=4, base=32, depths=_DEPTHS), (4, 2)
