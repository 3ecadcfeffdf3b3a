"""RepVGG networks: plain stacks of 3x3 convolutions once deployed, the form that TensorRT runs fastest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import JsonValue

from edgekd.search.space import GridSpace
from edgekd.search.spaces.pyramid import Pyramid

_DEPTHS = (1, 2, 3, 4, 6, 9)


class RepVggSpace(GridSpace):
    """Depth of each stage, first width and its growth, stride of the stem, around RepVGG-A (arXiv 2101.03697).

    The number of stages follows the input as in `residual`; above 64 pixels the first stage halves the resolution too.
    Costs are those of the deployed form: see `edgekd.nn.reparam`.
    """

    builder: ClassVar[str] = "edgekd:repvgg"
    summary: ClassVar[str] = "RepVGG: branches while it trains, plain 3x3 convolutions deployed; TensorRT-friendly"

    def _axes(self) -> Mapping[str, Sequence[int]]:
        pyramid, stem, _ = self._frame()
        return {"stem_stride": stem, **pyramid.axes(self.task)}

    def _kwargs(self, choices: Mapping[str, int]) -> dict[str, JsonValue]:
        pyramid, _, first = self._frame()
        return {
            "depths": [*pyramid.depths_of(choices)],
            "widths": [choices["width"], *pyramid.widths_of(self.task, choices)],
            "strides": [choices["stem_stride"], first, *[2] * (pyramid.stages - 1)],
        }

    def _frame(self) -> tuple[Pyramid, tuple[int, ...], int]:
        """(stages, strides of the stem from cheap to expensive, stride of the first stage)."""
        if self.task.side <= 16:
            return Pyramid(stages=2, base=16, depths=_DEPTHS), (1,), 1
        if self.task.side <= 64:
            return Pyramid(stages=3, base=16, depths=_DEPTHS), (2, 1), 1
        return Pyramid(stages=4, base=32, depths=_DEPTHS), (2,), 2
