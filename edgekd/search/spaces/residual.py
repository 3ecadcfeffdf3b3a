"""Residual networks of basic blocks: dense 3x3 convolutions, which CPUs and GPUs run close to their peak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import JsonValue

from edgekd.search.space import GridSpace

_WIDTH_FACTORS = (0.5, 1, 1.5, 2, 3, 4)
_GROWTHS = (2, 3, 4, 6)
"""Width of a stage over the one before it, in halves."""
_DEPTHS = (1, 2, 3, 4)


class ResidualSpace(GridSpace):
    """Depth of each stage, first width and its growth, stride of the stem, around the CIFAR and ImageNet ResNets.

    The number of stages follows the input: 2 up to 16 pixels, 3 up to 64, 4 above. Stages never get narrower: proxies
    that count would otherwise squeeze the early ones to afford wide late ones.
    """

    builder: ClassVar[str] = "edgekd:residual"

    def _axes(self) -> Mapping[str, Sequence[int]]:
        base, stages, strides = self._frame()
        axes: dict[str, Sequence[int]] = {
            "stem_stride": strides,
            "width": self.task.widths(base, _WIDTH_FACTORS),
        }
        for stage in range(stages):
            axes[f"depth{stage}"] = _DEPTHS
            if stage > 0:
                axes[f"growth{stage}"] = _GROWTHS
        return axes

    def _kwargs(self, choices: Mapping[str, int]) -> dict[str, JsonValue]:
        stages = self._frame()[1]
        widths = [choices["width"]] * 2  # stem and first stage
        for stage in range(1, stages):
            widths.append(self.task.width(widths[-1] * choices[f"growth{stage}"] / 2))
        return {
            "stem_stride": choices["stem_stride"],
            "depths": [choices[f"depth{stage}"] for stage in range(stages)],
            "widths": [*widths],
        }

    def _frame(self) -> tuple[int, int, tuple[int, ...]]:
        """(channels of the first stage, stages, strides of the stem from cheap to expensive)."""
        if self.task.side <= 16:
            return 16, 2, (1,)
        if self.task.side <= 64:
            return 16, 3, (2, 1)
        return 32, 4, (4, 2)
