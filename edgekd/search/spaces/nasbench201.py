"""The cells of NAS-Bench-201: a benchmark of rankings, for 15,625 networks with published accuracies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import JsonValue

from edgekd.core.preprocess import Preprocessing
from edgekd.core.recipe import ModelRecipe
from edgekd.nn.models.nasbench201 import EDGES, OPERATIONS, operations_from_string
from edgekd.search.space import GridSpace


class NasBench201Space(GridSpace):
    """One operation for each of the six edges of a cell (Dong and Yang 2020, arXiv 2001.00326).

    Widths are the benchmark's, whatever multiple the target prefers: other networks would have no published accuracy.
    """

    builder: ClassVar[str] = "edgekd:nasbench201"
    summary: ClassVar[str] = "cells of NAS-Bench-201, for benchmarks of rankings"
    follows_target: ClassVar[bool] = False

    def _axes(self) -> Mapping[str, Sequence[int]]:
        return {f"edge{start}{end}": range(len(OPERATIONS)) for start, end in EDGES}

    def _kwargs(self, choices: Mapping[str, int]) -> dict[str, JsonValue]:
        return {"operations": [OPERATIONS[choices[f"edge{start}{end}"]] for start, end in EDGES]}


def recipe_from_cell(cell: str, *, classes: int, preprocessing: Preprocessing) -> ModelRecipe:
    """The network of a benchmark string such as `|nor_conv_3x3~0|+|none~0|skip_connect~1|+|...|`."""
    return ModelRecipe(
        builder=NasBench201Space.builder,
        kwargs={
            "operations": list(operations_from_string(cell)),
            "classes": classes,
            "in_channels": preprocessing.channels,
        },
        preprocessing=preprocessing,
    )
