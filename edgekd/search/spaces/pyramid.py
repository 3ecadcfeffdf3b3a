"""Axes that networks of stages share: a first width, how much each stage is wider than the one before, and depths.

Stages never get narrower: proxies that count would otherwise squeeze the early ones to afford wide late ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgekd.search.space import Task

WIDTH_FACTORS = (0.5, 1, 1.5, 2, 3, 4)
GROWTHS = (2, 3, 4, 6)
"""Width of a stage over the one before it, in halves."""


@dataclass(frozen=True, kw_only=True)
class Pyramid:
    """A row of stages.

    Attributes:
        stages: How many.
        base: Typical channels of the first one.
        depths: Choices of blocks per stage, ascending.
    """

    stages: int
    base: int
    depths: tuple[int, ...]

    def axes(self, task: Task) -> dict[str, Sequence[int]]:
        """`width`, then `depth` and, but for the first, `growth` of each stage."""
        axes: dict[str, Sequence[int]] = {"width": task.widths(self.base, WIDTH_FACTORS)}
        for stage in range(self.stages):
            axes[f"depth{stage}"] = self.depths
            if stage > 0:
                axes[f"growth{stage}"] = GROWTHS
        return axes

    def depths_of(self, choices: Mapping[str, int]) -> list[int]:
        """Blocks of each stage."""
        return [choices[f"depth{stage}"] for stage in range(self.stages)]

    def widths_of(self, task: Task, choices: Mapping[str, int]) -> list[int]:
        """Channels of each stage, allowed ones."""
        widths = [choices["width"]]
        for stage in range(1, self.stages):
            widths.append(task.width(widths[-1] * choices[f"growth{stage}"] / 2))
        return widths
