"""Inverted residual networks (Sandler et al. 2018, MobileNetV2, arXiv 1801.04381), for CPUs with little bandwidth.

With squeeze-and-excite, their blocks are those of MobileNetV3 (Howard et al. 2019, arXiv 1905.02244), all with ReLU6
where it mixes ReLU and hard-swish.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field, JsonValue, PositiveInt, field_validator
from torch import Tensor, nn

from edgekd.core.schema import Schema
from edgekd.nn.models.init import init_convolutions_


class InvertedStage(Schema):
    """A run of blocks with one output width.

    Attributes:
        channels: Output channels of each block.
        expansion: Hidden channels of a block over its input channels; 1 leaves the expanding convolution out.
        depth: Blocks.
        stride: Of the first block.
        kernel: Side of the depthwise kernels, odd.
        squeeze_excite: Whether the blocks weigh their hidden channels by what the whole image holds.
    """

    channels: PositiveInt
    expansion: PositiveInt = 6
    depth: PositiveInt = 1
    stride: Literal[1, 2] = 1
    kernel: PositiveInt = 3
    squeeze_excite: bool = False

    @field_validator("kernel")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("must be odd")
        return value


class InvertedSpec(Schema):
    """The numbers that make one network.

    Attributes:
        stages: In order.
        stem: Channels of the first convolution.
        classes: K.
        head: Channels of the last 1x1 convolution; None leaves it out.
        in_channels: Channels of the image.
        stem_stride: 1 for images of about 32 pixels, 2 for larger ones.
        squeeze_multiple: Channels between the two layers of a squeeze-and-excite are a multiple of it.
    """

    stages: Annotated[tuple[InvertedStage, ...], Field(min_length=1)]
    stem: PositiveInt
    classes: PositiveInt
    head: PositiveInt | None = None
    in_channels: PositiveInt = 3
    stem_stride: Literal[1, 2] = 2
    squeeze_multiple: PositiveInt = 8


def inverted_from_kwargs(kwargs: Mapping[str, JsonValue]) -> nn.Module:
    """A randomly initialised `Inverted` from a recipe's kwargs, which are the fields of `InvertedSpec`.

    Raises:
        UserError: The kwargs do not fit; the message names each problem.
    """
    return Inverted(InvertedSpec.parse(kwargs, "edgekd:inverted"))


def _conv(in_channels: int, channels: int, kernel: int, *, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(channels)]


class SqueezeExcite(nn.Module):
    """`x * hard_sigmoid(W2 relu(W1 mean(x)))`, the mean over pixels (Hu et al. 2018, arXiv 1709.01507).

    As in MobileNetV3 the gate is the hard sigmoid, which integer kernels compute exactly, and W1 keeps a quarter of the
    channels, rounded up to a multiple.
    """

    def __init__(self, channels: int, *, multiple: int) -> None:
        super().__init__()
        squeezed = -(-channels // (4 * multiple)) * multiple
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.act = nn.ReLU()
        self.excite = nn.Conv2d(squeezed, channels, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x * self.gate(self.excite(self.act(self.squeeze(self.pool(x)))))
        return out


class InvertedBlock(nn.Module):
    """Expand, filter per channel, project without activation; added to the input where the shapes agree."""

    def __init__(self, in_channels: int, stage: InvertedStage, *, stride: int, squeeze_multiple: int) -> None:
        super().__init__()
        hidden = in_channels * stage.expansion
        layers = [] if stage.expansion == 1 else [*_conv(in_channels, hidden, 1), nn.ReLU6()]
        layers += [*_conv(hidden, hidden, stage.kernel, stride=stride, groups=hidden), nn.ReLU6()]
        if stage.squeeze_excite:
            layers.append(SqueezeExcite(hidden, multiple=squeeze_multiple))
        self.layers = nn.Sequential(*layers, *_conv(hidden, stage.channels, 1))
        self.residual = stride == 1 and in_channels == stage.channels

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


class Inverted(nn.Module):
    """Stem, inverted residual blocks, optional head, global average, classifier: (N, C, H, W) to logits (N, K)."""

    def __init__(self, spec: InvertedSpec) -> None:
        super().__init__()
        layers = [*_conv(spec.in_channels, spec.stem, 3, stride=spec.stem_stride), nn.ReLU6()]
        channels = spec.stem
        for stage in spec.stages:
            for position in range(stage.depth):
                stride = stage.stride if position == 0 else 1
                layers.append(InvertedBlock(channels, stage, stride=stride, squeeze_multiple=spec.squeeze_multiple))
                channels = stage.channels
        if spec.head is not None:
            layers += [*_conv(channels, spec.head, 1), nn.ReLU6()]
            channels = spec.head
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, spec.classes)
        init_convolutions_(self)

    def forward(self, images: Tensor) -> Tensor:
        features = self.features(images)
        logits: Tensor = self.classifier(torch.flatten(self.pool(features), 1))
        return logits
