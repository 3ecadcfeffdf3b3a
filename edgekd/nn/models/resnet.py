"""ImageNet-style residual networks (He et al. 2015, arXiv 1512.03385): a 7x7 stem and pooling, then four stages or so.

For images above about 64 pixels. The stride of a bottleneck sits on its 3x3 convolution, as in ResNet v1.5: the first
1x1 convolution then sees every pixel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from pydantic import JsonValue, PositiveInt, model_validator
from torch import Tensor, nn

from edgekd.core.schema import Schema
from edgekd.nn.models.init import init_convolutions_
from edgekd.nn.models.residual import BasicBlock


class ResNetSpec(Schema):
    """The numbers that make one network.

    Attributes:
        depths: Blocks per stage; every stage but the first halves the resolution.
        widths: Output channels of the blocks of each stage.
        inner: Channels inside the bottlenecks of each stage; empty makes basic blocks.
        stem: Channels of the first convolution.
        classes: K.
        in_channels: Channels of the image.
    """

    depths: tuple[PositiveInt, ...]
    widths: tuple[PositiveInt, ...]
    inner: tuple[PositiveInt, ...] = ()
    stem: PositiveInt
    classes: PositiveInt
    in_channels: PositiveInt = 3

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.depths or len(self.widths) != len(self.depths) or len(self.inner) not in (0, len(self.depths)):
            raise ValueError(
                f"widths needs one value per stage, and so does inner unless it is empty: {len(self.depths)} values "
                f"for depths {list(self.depths)}, got {list(self.widths)} and {list(self.inner)}"
            )
        return self


def resnet_from_kwargs(kwargs: Mapping[str, JsonValue]) -> nn.Module:
    """A randomly initialised `ResNet` from a recipe's kwargs, which are the fields of `ResNetSpec`.

    Raises:
        UserError: The kwargs do not fit; the message names each problem.
    """
    return ResNet(ResNetSpec.parse(kwargs, "edgekd:resnet"))


class Bottleneck(nn.Module):
    """`relu(expand(filter(reduce(x))) + shortcut(x))`: (N, C, H, W) to (N, C', H / stride, W / stride)."""

    def __init__(self, in_channels: int, channels: int, *, inner: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.act2 = nn.ReLU()
        self.conv3 = nn.Conv2d(inner, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )
        self.act3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.act2(self.bn2(self.conv2(y)))))
        out: Tensor = self.act3(y + self.shortcut(x))
        return out


class ResNet(nn.Module):
    """Stem and pooling (stride 4), stages, global average, classifier: images (N, C, H, W) to logits (N, K)."""

    def __init__(self, spec: ResNetSpec) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(spec.in_channels, spec.stem, 7, 2, 3, bias=False),
            nn.BatchNorm2d(spec.stem),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
        )
        stages: list[nn.Module] = []
        channels = spec.stem
        for index, (depth, width) in enumerate(zip(spec.depths, spec.widths, strict=True)):
            blocks: list[nn.Module] = []
            for position in range(depth):
                stride = 2 if index > 0 and position == 0 else 1
                if spec.inner:
                    blocks.append(Bottleneck(channels, width, inner=spec.inner[index], stride=stride))
                else:
                    blocks.append(BasicBlock(channels, width, stride=stride, kernel=3))
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
