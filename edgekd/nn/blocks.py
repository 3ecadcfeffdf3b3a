"""Single blocks, named and described by a few numbers: what a `replace` edit puts into a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pydantic import JsonValue
from torch import nn

from edgekd.core.registry import Registry
from edgekd.core.schema import Schema

BlockBuilder = Callable[[Mapping[str, JsonValue]], nn.Module]
"""From an edit's kwargs to a randomly initialised block; raises `UserError` for kwargs that do not fit."""

BLOCKS: Registry[BlockBuilder] = Registry("block", {"identity": "edgekd.nn.blocks:identity_from_kwargs"})


class _NoArguments(Schema):
    """An identity has nothing to choose."""


def identity_from_kwargs(kwargs: Mapping[str, JsonValue]) -> nn.Module:
    """A block that does nothing: the network gets shallower."""
    _NoArguments.parse(kwargs, "block 'identity'")
    return nn.Identity()
