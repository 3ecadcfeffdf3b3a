"""RepVGG (Ding et al. 2021, arXiv 2101.03697): residual while it trains, a plain stack of 3x3 convolutions deployed.

Dense 3x3 convolutions with nothing between them but ReLU are what TensorRT and oneDNN run fastest: no additions, one
map in memory at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import JsonValue, PositiveInt, model_validator
from torch import Tensor, nn

from edgekd.core.schema import Schema
from edgekd.nn.models.init import init_convolutions_
from edgekd.nn.reparam import Fusable, folded_norm


class RepVggSpec(Schema):
    """The numbers that make one network.

    Attributes:
        depths: Blocks per stage; the first block of a stage strides.
        widths: Channels of the stem, then of each stage.
        strides: Of the stem, then of each stage.
        classes: K.
        in_channels: Channels of the image.
    """

    depths: tuple[PositiveInt, ...]
    widths: tuple[PositiveInt, ...]
    strides: tuple[Literal[1, 2], ...]
    classes: PositiveInt
    in_channels: PositiveInt = 3

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        wanted = len(self.depths) + 1
        if not self.depths or len(self.widths) != wanted or len(self.strides) != wanted:
            raise ValueError(
                f"widths and strides need the stem and one value per stage: {wanted} values for depths "
                f"{list(self.depths)}, got {list(self.widths)} and {list(self.strides)}"
            )
        return self


def repvgg_from_kwargs(kwargs: Mapping[str, JsonValue]) -> nn.Module:
    """A randomly initialised `RepVgg` from a recipe's kwargs, which are the fields of `RepVggSpec`.

    Raises:
        UserError: The kwargs do not fit; the message names each problem.
    """
    return RepVgg(RepVggSpec.parse(kwargs, "edgekd:repvgg"))


class RepVggBlock(Fusable):
    """`relu(bn(conv3x3(x)) + bn(conv1x1(x)) + bn(x))`, the last term where the shapes agree.

    (N, C, H, W) to (N, C', H / stride, W / stride).
    """

    def __init__(self, in_channels: int, channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv3 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.bn0 = nn.BatchNorm2d(channels) if stride == 1 and in_channels == channels else None
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn3(self.conv3(x)) + self.bn1(self.conv1(x))
        if self.bn0 is not None:
            y = y + self.bn0(x)
        out: Tensor = self.act(y)
        return out

    def fused(self) -> nn.Module:
        """ReLU after one 3x3 convolution: a 1x1 kernel is a 3x3 one with zeros around, an identity a 1x1 kernel."""
        kernel, bias = folded_norm(self.conv3.weight, self.bn3)
        point, point_bias = folded_norm(F.pad(self.conv1.weight, (1, 1, 1, 1)), self.bn1)
        kernel, bias = kernel + point, bias + point_bias
        if self.bn0 is not None:
            identity = torch.zeros_like(kernel)
            identity[:, :, 1, 1] = torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
            same, same_bias = folded_norm(identity, self.bn0)
            kernel, bias = kernel + same, bias + same_bias
        old = self.conv3
        conv = nn.Conv2d(old.in_channels, old.out_channels, 3, old.stride[0], 1).to(old.weight)
        with torch.no_grad():
            conv.weight.copy_(kernel)
            conv.bias.copy_(bias)  # type: ignore[union-attr]
        return nn.Sequential(conv, nn.ReLU())


class RepVgg(nn.Module):
    """Stem block, stages of blocks, global average, classifier: images (N, C, H, W) to logits (N, K)."""

    def __init__(self, spec: RepVggSpec) -> None:
        super().__init__()
        channels = spec.widths[0]
        self.stem = RepVggBlock(spec.in_channels, channels, stride=spec.strides[0])
        stages: list[nn.Module] = []
        for depth, width, stride in zip(spec.depths, spec.widths[1:], spec.strides[1:], strict=True):
            blocks: list[nn.Module] = []
            for position in range(depth):
                blocks.append(RepVggBlock(channels, width, stride=stride if position == 0 else 1))
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
