"""What may stand in the place of a block or of a run of blocks, as data, and the edits that put it there.

In deep and thin networks the number of layers decides the latency, so runs matter most: one block that was trained to
do the work of nine. A run stays within a stage, where at most its first block changes the shape.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, JsonValue, NonNegativeInt, PositiveInt
from torch import nn

from edgekd.core.recipe import Edit
from edgekd.core.schema import Schema
from edgekd.nn.blocks import BLOCKS
from edgekd.nn.count import count_macs
from edgekd.nn.edits import replace_edit
from edgekd.nn.reparam import reparameterised
from edgekd.search.blocks.chain import Block, stages

OWN = "own"
IDENTITY = "identity"


class Family(Schema):
    """One kind of replacement, tried wherever it fits.

    Attributes:
        block: `own`: the first block of a run does the work of all, trained on from its weights; `identity`: nothing
            does; else a block of `edgekd.nn.blocks`.
        width: Inner channels: over the output's for `basic`, over the input's for `inverted`.
        shortest: Fewest blocks of a run that it replaces.
        longest: Most blocks; None for a whole stage.
    """

    block: Literal["own", "identity", "basic", "conv", "repvgg", "inverted"]
    width: float = Field(default=1.0, gt=0)
    shortest: PositiveInt = 1
    longest: PositiveInt | None = None

    def admits(self, length: int) -> bool:
        """Whether it replaces runs of this many blocks."""
        return self.shortest <= length and (self.longest is None or length <= self.longest)


DENSE = (
    Family(block="identity", longest=1),
    Family(block="own", shortest=2),
    Family(block="basic", width=0.5, longest=1),
    Family(block="basic", width=1, shortest=6),
    Family(block="basic", width=2, shortest=6),
    Family(block="repvgg", longest=3),
)
"""For networks of full convolutions. A block that was trained before beats one of random weights, but in long runs."""
DEPTHWISE = (
    Family(block="identity", longest=1),
    Family(block="own", shortest=2),
    Family(block="inverted", width=3, longest=2),
    Family(block="inverted", width=1),
)
"""Without dense 3x3 convolutions, which cost such networks more than what they replace."""


class Replacement(Schema):
    """One candidate for one run of blocks.

    Attributes:
        first: Position of the first block that goes.
        last: Position of the last one.
        block: A name in `BLOCKS`, or `own`.
        kwargs: Of the block.
    """

    first: NonNegativeInt
    last: NonNegativeInt
    block: str
    kwargs: dict[str, JsonValue] = Field(default_factory=dict)

    @property
    def key(self) -> str:
        """A name for files and tables, such as `9-12-basic-32`."""
        hidden = self.kwargs.get("hidden")
        return f"{self.first}-{self.last}-{self.block}" + ("" if hidden is None else f"-{hidden}")

    @property
    def length(self) -> int:
        """Blocks that it replaces."""
        return self.last - self.first + 1

    @property
    def trained(self) -> bool:
        """Whether it has weights to train."""
        return self.block != IDENTITY

    def module(self, teacher: nn.Module, blocks: Sequence[Block], seed: int) -> nn.Module:
        """A copy of the teacher's own block, or a block that is randomly initialised from `seed`."""
        if self.block == OWN:
            return copy.deepcopy(teacher.get_submodule(blocks[self.first].path)).requires_grad_(True)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return BLOCKS.get(self.block)(self.kwargs)

    def deployed(self) -> nn.Module:
        """A block of `BLOCKS` in the form that it is deployed in, with random weights: for what it costs."""
        # Parts are fused, never the module itself.
        return reparameterised(nn.Sequential(BLOCKS.get(self.block)(self.kwargs)))

    def edits(self, blocks: Sequence[Block]) -> tuple[Edit, ...]:
        """The edits of the teacher's recipe: the block stands first, identities stand for the rest of the run."""
        first, *rest = (block.path for block in blocks[self.first : self.last + 1])
        start = () if self.block == OWN else (replace_edit(first, self.block, self.kwargs),)
        return (*start, *(replace_edit(path, IDENTITY) for path in rest))


def default_families(blocks: Sequence[Block]) -> tuple[Family, ...]:
    """`DEPTHWISE` where most blocks hold a depthwise convolution, else `DENSE`."""
    return DEPTHWISE if 2 * sum(block.depthwise for block in blocks) > len(blocks) else DENSE


def candidates(
    blocks: Sequence[Block], families: Sequence[Family], *, macs: Sequence[int], multiple: int
) -> list[list[Replacement]]:
    """By stage, all replacements that have fewer multiply-accumulates than their run, or as many in fewer blocks.

    Runs of L blocks begin at every (L // 2)th block, so their number grows with n log n. Lengths come in an order in
    which each prefix is useful: n, n / 2, n / 4 ... 1 first, so that a limit of time leaves long and short runs.

    Args:
        blocks: Of the teacher.
        families: What to try.
        macs: Of the blocks.
        multiple: Inner widths are multiples of it.
    """
    found = []
    for stage in stages(blocks):
        replacements: dict[str, Replacement] = {}
        for length in _lengths(len(stage)):
            for first in _starts(stage, length):
                for family in families:
                    one = _replacement(family, blocks, first, length, multiple)
                    if one is not None and _cheaper(one, blocks, sum(macs[first : first + length])):
                        replacements.setdefault(one.key, one)
        found.append(list(replacements.values()))
    return found


def _lengths(n: int) -> list[int]:
    halved = [n]
    while halved[-1] > 1:
        halved.append(halved[-1] // 2)
    return halved + [length for length in range(n, 0, -1) if length not in halved]


def _starts(stage: range, length: int) -> list[int]:
    last = stage.stop - length
    return sorted({*range(stage.start, last, max(1, length // 2)), last})


def _replacement(family: Family, blocks: Sequence[Block], first: int, length: int, multiple: int) -> Replacement | None:
    """The family's member for a run, None where there is none."""
    run = blocks[first : first + length]
    if not family.admits(length):
        return None
    if family.block == IDENTITY:
        fits = all(block.keeps_shape for block in run)
        return Replacement(first=first, last=first + length - 1, block=IDENTITY) if fits else None
    if family.block == OWN:
        return Replacement(first=first, last=first + length - 1, block=OWN) if length > 1 else None
    (in_channels, *size), (channels, *after) = run[0].input, run[-1].output
    stride = -(-size[0] // after[0])
    if [-(-side // stride) for side in size] != after or (family.block == "repvgg" and not run[-1].relu):
        return None
    kwargs: dict[str, JsonValue] = {
        "in_channels": in_channels,
        "channels": channels,
        "stride": stride,
        "relu": run[-1].relu,
    }
    if family.block in ("basic", "inverted"):
        wide = family.width * (channels if family.block == "basic" else in_channels)
        kwargs["hidden"] = max(1, round(wide / multiple)) * multiple
        if family.block == "inverted" and family.width == 1:
            kwargs["hidden"] = in_channels
    return Replacement(first=first, last=first + length - 1, block=family.block, kwargs=kwargs)


def _cheaper(one: Replacement, blocks: Sequence[Block], macs: int) -> bool:
    if one.block in (OWN, IDENTITY):
        return True
    needed = count_macs(one.deployed(), blocks[one.first].input)
    return needed < macs or (needed == macs and one.length > 1)
