"""Small networks of shapes that our own families do not have, and the way users export them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from edgekd.nn.timm import module_from_timm


class PaddedShortcut(nn.Module):
    """A CIFAR ResNet block with the parameter-free shortcut: a strided slice, padded with zero channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.linear = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(x)) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        logits: Tensor = self.linear(F.relu(y).mean((2, 3)))
        return logits


class ConvHead(nn.Module):
    """As in SqueezeNet: a 1x1 convolution gives the classes, then the pixels are averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = F.relu(self.head(self.features(x))).mean((2, 3))
        return logits


class Tokens(nn.Module):
    """A vision transformer of one block: tokens and no pixels, and a parameter that is no layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.position = nn.Parameter(torch.zeros(1, 4, 8))
        self.norm = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 24)
        self.num_heads = 2
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        n, t, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, t, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        x = x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, -1)
        logits: Tensor = self.head(self.drop(x).mean(1))
        return logits


class Mixed(nn.Module):
    """What a rebuild must get right: a layer used twice, one weight under two settings, many kinds of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding="same")
        self.shared = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.norm1 = nn.GroupNorm(2, 8)
        self.norm2 = nn.BatchNorm2d(8, eps=1e-3, momentum=0.3)
        self.act = nn.ReLU(inplace=True)
        self.pool = nn.AvgPool2d(2, ceil_mode=True)
        self.scale = nn.Parameter(torch.full((8, 1, 1), 0.5))
        self.register_buffer("shift", torch.full((8, 1, 1), 0.25), persistent=False)
        self.fc = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.stem(x))
        x = self.act(self.norm1(self.shared(x)))
        x = self.act(self.norm2(self.shared(x))) * self.scale + self.shift
        x = F.conv2d(x, self.shared.weight, self.shared.bias, stride=2, padding=1, groups=2)
        logits: Tensor = self.fc(torch.flatten(F.adaptive_avg_pool2d(self.pool(x), 1), 1))
        return logits


def vit(**kwargs: Any) -> nn.Module:
    """A vision transformer of two blocks for images of 32 x 32: 64 patches behind a class token."""
    small = {"num_classes": 4, "img_size": 32, "patch_size": 4, "depth": 2, "embed_dim": 48}
    return module_from_timm("vit_tiny_patch16_224", small | kwargs)


def swin() -> nn.Module:
    """A Swin transformer of three stages for images of 32 x 32: 8 x 8, 4 x 4 and 2 x 2 pixels, channels last."""
    small = {"depths": (1, 1, 1), "embed_dim": 24, "num_heads": (1, 2, 4), "window_size": 4}
    return module_from_timm("swin_tiny_patch4_window7_224", {"num_classes": 4, "img_size": 32} | small)


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in evaluation mode with statistics and affine weights that are not the neutral ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in (*module.named_parameters(), *module.named_buffers()):
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=generator) - (0.0 if "var" in name else 0.4))
    return module.eval()


def images(n: int = 3, size: int = 8, channels: int = 3) -> Tensor:
    """Noise that is the same in every test."""
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(7))


def exported(module: nn.Module, example: Tensor, *, dynamic: bool = True, **options: Any) -> ExportedProgram:
    """As a user exports: in evaluation mode, with an open batch."""
    shapes = ({0: Dim("N")},) if dynamic else None
    return torch.export.export(module.eval(), (example,), dynamic_shapes=shapes, **options)


def saved(program: ExportedProgram, path: Path) -> Path:
    """The program's file."""
    torch.export.save(program, path)
    return path
