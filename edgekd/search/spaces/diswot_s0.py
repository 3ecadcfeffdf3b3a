"""DisWOT's space S0 (Dong et al. 2023, arXiv 2303.15678): 64 CIFAR ResNets, a benchmark of rankings.

The blocks and depths are those of the authors' code (file names say s1), and with the 1x1 projections of
`edgekd:residual` so are the numbers of parameters: 83.9 k to 667 k for 100 classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import JsonValue

from edgekd.core.preprocess import Preprocessing
from edgekd.core.recipe import ModelRecipe
from edgekd.errors import UserError
from edgekd.search.space import GridSpace

DEPTHS = (1, 3, 5, 7)
STAGES = 3
WIDTHS = (16, 16, 32, 64)
"""Channels of the stem and of each stage."""


class DisWotS0Space(GridSpace):
    """Blocks of each of three stages, out of 1, 3, 5 and 7.

    Widths are the benchmark's, whatever multiple the target prefers: other networks would have no published accuracy.
    """

    builder: ClassVar[str] = "edgekd:residual"
    summary: ClassVar[str] = "the 64 CIFAR ResNets of DisWOT, for benchmarks of rankings"
    follows_target: ClassVar[bool] = False

    def _axes(self) -> Mapping[str, Sequence[int]]:
        return {f"depth{stage}": DEPTHS for stage in range(STAGES)}

    def _kwargs(self, choices: Mapping[str, int]) -> dict[str, JsonValue]:
        return {"stem_stride": 1, "depths": [*choices.values()], "widths": [*WIDTHS]}


def s0_recipe(depths: Sequence[int], *, classes: int, preprocessing: Preprocessing) -> ModelRecipe:
    """The network of S0 with these depths, (3, 3, 3) for ResNet-20.

    Raises:
        UserError: No network of S0 has them.
    """
    if len(depths) != STAGES or any(depth not in DEPTHS for depth in depths):
        raise UserError(
            f"The networks of DisWOT's S0 have {STAGES} stages of {', '.join(map(str, DEPTHS))} blocks; got "
            f"{list(depths)}.",
            hint="other depths: ModelRecipe(builder='edgekd:residual', ...)",
        )
    return ModelRecipe(
        builder=DisWotS0Space.builder,
        kwargs={
            "stem_stride": 1,
            "depths": [*depths],
            "widths": [*WIDTHS],
            "classes": classes,
            "in_channels": preprocessing.channels,
        },
        preprocessing=preprocessing,
    )
