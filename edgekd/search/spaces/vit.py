"""Small vision transformers (Dosovitskiy et al. 2020, arXiv 2010.11929), built by timm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import JsonValue

from edgekd.errors import UserError
from edgekd.search.space import GridSpace

_TOKENS = (4, 400)
"""Fewest and most patches: attention over fewer sees hardly any position, over more it costs more than the rest."""
_LARGEST_PATCH = 32
_PATCHES = 4
"""Choices of the patch size, at most."""
_WIDTHS = (1, 2, 3, 4, 6)
"""In units of `_HEAD` channels."""
_HEAD = 64
_DEPTHS = (2, 3, 4, 6, 8, 12)
_MLP_RATIOS = (2, 3, 4)


class VitSpace(GridSpace):
    """Patch size, width, depth, width of a head and of the MLP, around DeiT-Ti and DeiT-S (arXiv 2012.12877).

    The input size is fixed and tokens are averaged, without a class token: every matrix product of the deployed graph
    has constant sizes, multiples of what the target prefers.

    Raises:
        UserError: No patch size divides the images.
    """

    builder: ClassVar[str] = "timm:vit_tiny_patch16_224"
    summary: ClassVar[str] = "small vision transformers with a fixed input size"

    def _axes(self) -> Mapping[str, Sequence[int]]:
        unit = self.task.width(_HEAD)
        halves = (2, 1) if unit % (2 * self.task.channel_multiple) == 0 else (2,)
        return {
            "patch": self._patches(),
            "width": tuple(unit * factor for factor in _WIDTHS),
            "depth": _DEPTHS,
            "head": tuple(unit // 2 * half for half in halves),
            "mlp_ratio": _MLP_RATIOS,
        }

    def _kwargs(self, choices: Mapping[str, int]) -> dict[str, JsonValue]:
        return {
            "img_size": [*self.task.preprocessing.size],
            "patch_size": choices["patch"],
            "embed_dim": choices["width"],
            "depth": choices["depth"],
            "num_heads": choices["width"] // choices["head"],
            "mlp_ratio": choices["mlp_ratio"],
            "global_pool": "avg",
            "class_token": False,
        }

    def _fixed(self) -> dict[str, JsonValue]:
        return {"num_classes": self.task.classes, "in_chans": self.task.preprocessing.channels}

    def _patches(self) -> tuple[int, ...]:
        """Sides that divide the image, from large (few tokens) to small."""
        height, width = self.task.preprocessing.size
        fewest, most = _TOKENS
        sides = [
            side
            for side in range(min(_LARGEST_PATCH, math.gcd(height, width)), 1, -1)
            if height % side == width % side == 0 and fewest <= height // side * (width // side) <= most
        ]
        if not sides:
            raise UserError(
                f"No vision transformer takes images of {height}x{width}: no patch size divides both sides into "
                f"{fewest} to {most} patches.",
                hint="choose another space: --space inverted",
            )
        return tuple(sides[-_PATCHES:])
