"""Residual networks of basic blocks (He et al. 2015, arXiv 1512.03385), for small and medium images.

The family of the CIFAR ResNets, with a 1x1 projection where a block changes its shape: unlike the parameter-free
zero-padded shortcut, it leaves every channel count free, which search and pruning need.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

import torch
from pydantic import JsonValue, PositiveInt, model_validator
from torch import Tensor, nn

from edgekd.core.schema import Schema
from edgekd.nn.models.init import init_convolutions_


class ResidualSpec(Schema):
    """The numbers that make one network.

    Attributes:
        depths: Blocks per stage; every stage but the first halves the resolution.
        widths: Channels of the stem, then of each stage.
        classes: K.
        in_channels: Channels of the image.
        stem_stride: 1 for images of about 32 pixels, 2 or 4 for larger ones.
        kernel: Side of the blocks' kernels, odd.
    """

    depths: tuple[PositiveInt, ...]
    widths: tuple[PositiveInt, ...]
    classes: PositiveInt
    in_channels: PositiveInt = 3
    stem_stride: Literal[1, 2, 4] = 1
    kernel: PositiveInt = 3

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.depths or len(self.widths) != len(self.depths) + 1:
            raise ValueError(
                f"widths needs the stem and one value per stage: {len(self.depths) + 1} values for depths "
                f"{list(self.depths)}, got {list(self.widths)}"
            )
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {self.kernel}")
        return self


def residual_from_kwargs(kwargs: Mapping[str, JsonValue]) -> nn.Module:
    """A randomly initialised `Residual` from a recipe's kwargs, which are the fields of `ResidualSpec`.

    Raises:
        UserError: The kwargs do not fit; the message names each problem.
    """
    return Residual(ResidualSpec.parse(kwargs, "edgekd:residual"))


class BasicBlock(nn.Module):
    """`relu(bn(conv(relu(bn(conv(x))))) + shortcut(x))`: (N, C, H, W) to (N, C', H / stride, W / stride)."""

    def __init__(self, in_channels: int, channels: int, *, stride: int, kernel: int) -> None:
        super().__init__()
        padding = kernel // 2
        self.conv1 = nn.Conv2d(in_channels, channels, kernel, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, kernel, 1, padding, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        out: Tensor = self.act2(y + self.shortcut(x))
        return out


class Residual(nn.Module):
    """Stem, stages of basic blocks, global average, classifier: images (N, C, H, W) to logits (N, K)."""

    def __init__(self, spec: ResidualSpec) -> None:
        super().__init__()
        stem, *widths = spec.widths
        # The kernel overlaps its neighbours at every stride: 3, 3, 7 for strides 1, 2, 4.
        kernel = max(3, 2 * spec.stem_stride - 1)
        self.stem = nn.Sequential(
            nn.Conv2d(spec.in_channels, stem, kernel, spec.stem_stride, kernel // 2, bias=False),
            nn.BatchNorm2d(stem),
            nn.ReLU(),
        )
        stages: list[nn.Module] = []
        channels = stem
        for index, (depth, width) in enumerate(zip(spec.depths, widths, strict=True)):
            blocks: list[nn.Module] = []
            for position in range(depth):
                stride = 2 if index > 0 and position == 0 else 1
                blocks.append(BasicBlock(channels, width, stride=stride, kernel=spec.kernel))
                channels = width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, spec.classes)
        init_convolutions_(self)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stages(self.stem(images))
        logits: Tensor = self.classifier(torch.flatten(self.pool(features), 1))
        return logits
