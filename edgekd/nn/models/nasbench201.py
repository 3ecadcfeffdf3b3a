"""The networks of NAS-Bench-201 (Dong and Yang 2020, arXiv 2001.00326): one cell of four nodes, stacked fifteen times.

Operations that no path from the cell's input to its output uses are not built: they change no output, and an export
would drop them. Counts of parameters are therefore at most the published ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from pydantic import JsonValue, PositiveInt, model_validator
from torch import Tensor, nn

from edgekd.core.schema import Schema
from edgekd.nn.models.init import init_convolutions_

OPERATIONS = ("none", "skip_connect", "avg_pool_3x3", "nor_conv_1x1", "nor_conv_3x3")
"""By their names in the benchmark, from cheap to expensive."""
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
"""(from, to), in the order of the benchmark's strings; node 0 is the input of a cell, node 3 its output."""


class NasBench201Spec(Schema):
    """The numbers that make one network.

    Attributes:
        operations: One of `OPERATIONS` for each of `EDGES`.
        width: Channels of the first stage, doubled by each of the two reductions.
        cells: In each of the three stages.
        classes: K.
        in_channels: Channels of the image.
    """

    operations: tuple[str, ...]
    width: PositiveInt = 16
    cells: PositiveInt = 5
    classes: PositiveInt
    in_channels: PositiveInt = 3

    @model_validator(mode="after")
    def _known(self) -> Self:
        unknown = [name for name in self.operations if name not in OPERATIONS]
        if unknown or len(self.operations) != len(EDGES):
            raise ValueError(
                f"operations needs {len(EDGES)} of {', '.join(OPERATIONS)}, one for each edge; got "
                f"{', '.join(self.operations)}"
            )
        return self


def nasbench201_from_kwargs(kwargs: Mapping[str, JsonValue]) -> nn.Module:
    """A randomly initialised `NasBench201` from a recipe's kwargs, which are the fields of `NasBench201Spec`.

    Raises:
        UserError: The kwargs do not fit; the message names each problem.
    """
    return NasBench201(NasBench201Spec.parse(kwargs, "edgekd:nasbench201"))


def operations_from_string(text: str) -> tuple[str, ...]:
    """The operations of a benchmark string such as `|nor_conv_3x3~0|+|none~0|...|`, in the order of `EDGES`."""
    return tuple(part.split("~")[0] for part in text.replace("+", "").split("|") if part)


def used_edges(operations: Sequence[str]) -> frozenset[tuple[int, int]]:
    """The edges on some path from the input of the cell to its output."""
    present = [edge for edge, name in zip(EDGES, operations, strict=True) if name != "none"]
    from_input, to_output = {0}, {3}
    for _ in EDGES:
        from_input |= {end for start, end in present if start in from_input}
        to_output |= {start for start, end in present if end in to_output}
    return frozenset((start, end) for start, end in present if start in from_input and end in to_output)


class ReluConvBn(nn.Sequential):
    """`bn(conv(relu(x)))`."""

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(channels),
        )


def _operation(name: str, channels: int) -> nn.Module:
    if name == "skip_connect":
        return nn.Identity()
    if name == "avg_pool_3x3":
        return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    return ReluConvBn(channels, channels, 1 if name == "nor_conv_1x1" else 3)


class Cell(nn.Module):
    """Each node is the sum of operations on earlier ones: (N, C, H, W) to the same; zeros when nothing is connected."""

    def __init__(self, operations: Sequence[str], channels: int) -> None:
        super().__init__()
        used = used_edges(operations)
        self.edges = [edge for edge in EDGES if edge in used]
        names = dict(zip(EDGES, operations, strict=True))
        self.operations = nn.ModuleList(_operation(names[edge], channels) for edge in self.edges)

    def forward(self, x: Tensor) -> Tensor:
        nodes: dict[int, Tensor] = {0: x}
        for (start, end), operation in zip(self.edges, self.operations, strict=True):
            value = operation(nodes[start])
            nodes[end] = nodes[end] + value if end in nodes else value
        return nodes[3] if 3 in nodes else torch.zeros_like(x)


class Reduction(nn.Module):
    """A residual block that halves the resolution: (N, C, H, W) to (N, C', H / 2, W / 2)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv_a = ReluConvBn(in_channels, channels, 3, stride=2)
        self.conv_b = ReluConvBn(channels, channels, 3)
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(in_channels, channels, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv_b(self.conv_a(x)) + self.shortcut(x)
        return out


class NasBench201(nn.Module):
    """Stem, three stages of cells with reductions between, global average, classifier: (N, C, H, W) to (N, K)."""

    def __init__(self, spec: NasBench201Spec) -> None:
        super().__init__()
        channels = spec.width
        self.stem = nn.Sequential(
            nn.Conv2d(spec.in_channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )
        blocks: list[nn.Module] = [Cell(spec.operations, channels) for _ in range(spec.cells)]
        for _ in range(2):
            blocks.append(Reduction(channels, 2 * channels))
            channels *= 2
            blocks += [Cell(spec.operations, channels) for _ in range(spec.cells)]
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, spec.classes)
        init_convolutions_(self)

    def forward(self, images: Tensor) -> Tensor:
        features = self.last(self.blocks(self.stem(images)))
        logits: Tensor = self.classifier(torch.flatten(self.pool(features), 1))
        return logits
