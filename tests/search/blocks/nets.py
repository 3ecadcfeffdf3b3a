"""Small networks with one obstacle each for whoever looks for replaceable blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgekd.nn.models.residual import BasicBlock


def block(in_channels: int = 8, channels: int = 8, stride: int = 1) -> BasicBlock:
    return BasicBlock(in_channels, channels, stride=stride, kernel=3)


class Stage(nn.Module):
    """Blocks in a list, called one after the other: a container that is no `nn.Sequential`."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.blocks:
            x = part(x)
        return x


class Backbone(nn.Module):
    """A stem without a block of its own, then blocks."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.blocks(self.stem(x))
        return out


class Net(nn.Module):
    """A backbone of any kind and a head."""

    def __init__(self, body: nn.Module, channels: int = 8) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(channels, 4)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(images).mean((2, 3)))
        return logits


class Skipping(nn.Module):
    """The output of the second of four blocks is read a second time, at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(block() for _ in range(4))
        self.head = nn.Linear(16, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        seen = []
        for part in self.blocks:
            x = part(x)
            seen.append(x)
        logits: Tensor = self.head(torch.cat([seen[1], x], 1).mean((2, 3)))
        return logits
