"""Our own small architectures, described by a few numbers: what a search space varies and a recipe stores."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pydantic import JsonValue
from torch import nn

from edgekd.core.registry import Registry

Builder = Callable[[Mapping[str, JsonValue]], nn.Module]
"""From a recipe's kwargs to a randomly initialised module; raises `UserError` for kwargs that do not fit."""

BUILDERS: Registry[Builder] = Registry(
    "edgekd architecture",
    {
        "residual": "edgekd.nn.models.residual:residual_from_kwargs",
        "inverted": "edgekd.nn.models.inverted:inverted_from_kwargs",
        "resnet": "edgekd.nn.models.resnet:resnet_from_kwargs",
        "repvgg": "edgekd.nn.models.repvgg:repvgg_from_kwargs",
        "nasbench201": "edgekd.nn.models.nasbench201:nasbench201_from_kwargs",
    },
)
"""The families behind `edgekd:FAMILY` recipes."""
