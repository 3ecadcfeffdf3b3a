"""Inverted residual networks: few multiply-accumulates, for large images and for devices with little compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import JsonValue

from edgekd.search.space import GridSpace

_WIDTH_FACTORS = (0.5, 0.75, 1, 1.25, 1.5)
_DEPTHS = (1, 2, 3, 4)
_EXPANSIONS = (2, 3, 4, 6)
_KERNELS = (3, 5)
_SQUEEZE_EXCITE = (0, 1)


class InvertedSpace(GridSpace):
    """Width, depth, expansion, kernel and squeeze-and-excite of each stage, stem and head.

    Around MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381) and MobileNetV3 (Howard et al. 2019, arXiv 1905.02244).
    Images up to 64 pixels get three stages that halve the resolution twice, larger ones five stages.
    """

    builder: ClassVar[str] = "edgekd:inverted"
    summary: ClassVar[str] = "inverted residuals as in MobileNetV2 and V3: few multiply-accumulates"

    def _axes(self) -> Mapping[str, Sequence[int]]:
        small, task = self._small, self.task
        axes: dict[str, Sequence[int]] = {
            "stem_stride": (2, 1) if 16 < task.side <= 64 else (1,) if small else (2,),
            "stem": task.widths(16, (0.5, 1, 1.5, 2)),
        }
        for stage, (width, _) in enumerate(self._stages):
            axes[f"width{stage}"] = task.widths(width, _WIDTH_FACTORS)
            axes[f"depth{stage}"] = _DEPTHS
            axes[f"expansion{stage}"] = _EXPANSIONS
            axes[f"kernel{stage}"] = _KERNELS
            axes[f"squeeze_excite{stage}"] = _SQUEEZE_EXCITE
        axes["head"] = task.widths(self._stages[-1][0], (2, 4, 8))
        return axes

    def _kwargs(self, choices: Mapping[str, int]) -> dict[str, JsonValue]:
        stages: list[JsonValue] = [
            {
                "channels": choices[f"width{stage}"],
                "depth": choices[f"depth{stage}"],
                "expansion": choices[f"expansion{stage}"],
                "kernel": choices[f"kernel{stage}"],
                "stride": stride,
                "squeeze_excite": bool(choices[f"squeeze_excite{stage}"]),
            }
            for stage, (_, stride) in enumerate(self._stages)
        ]
        return {
            "stem_stride": choices["stem_stride"],
            "stem": choices["stem"],
            "stages": stages,
            "head": choices["head"],
            "squeeze_multiple": self.task.channel_multiple,
        }

    @property
    def _small(self) -> bool:
        return self.task.side <= 64

    @property
    def _stages(self) -> tuple[tuple[int, int], ...]:
        """(typical width, stride) of each stage."""
        if self._small:
            return (16, 1), (32, 2), (64, 2)
        return (16, 1), (24, 2), (40, 2), (80, 2), (160, 2)
