"""Small networks, each with one of the couplings that pruning has to respect."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PaddedShortcut(nn.Module):
    """CIFAR ResNet with parameter-free shortcuts: strided slicing, then zeros around the channels (option A)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.first = PaddedBlock(width, width)
        self.second = PaddedBlock(width, 2 * width)
        self.classifier = nn.Linear(2 * width, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(F.relu(self.bn(self.stem(x)))))
        logits: Tensor = self.classifier(y.mean((2, 3)))
        return logits


class PaddedBlock(nn.Module):
    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.stride = 1 if in_channels == channels else 2
        self.conv1 = nn.Conv2d(in_channels, channels, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.pad = (channels - in_channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        short = x if self.stride == 1 else F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(y + short)


class Dense(nn.Module):
    """Concatenation, a depthwise convolution, a gate computed from the features, and a flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.grow = nn.Conv2d(8, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16)
        self.bn = nn.BatchNorm2d(16)
        self.act = nn.PReLU(16)
        self.squeeze = nn.Conv2d(16, 8, 1)
        self.excite = nn.Conv2d(8, 16, 1)
        self.project = nn.Conv2d(16, 8, 1)
        self.classifier = nn.Linear(8 * 4 * 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = torch.cat([x, F.relu(self.grow(x))], 1)
        x = self.act(self.bn(self.depthwise(x)))
        gate = self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))).sigmoid()
        logits: Tensor = self.classifier(self.project(x * gate).flatten(1))
        return logits


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.head_dim = head_dim
        self.attn_dim = heads * head_dim
        self.qkv = nn.Linear(width, 3 * self.attn_dim)
        self.proj = nn.Linear(self.attn_dim, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, self.attn_dim)
        return self.proj(y)  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """One block of a vision transformer, with a learned position embedding and a learned scale."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 4, 4)
        self.position = nn.Parameter(torch.randn(1, 4, width))
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads, 8)
        self.scale = nn.Parameter(torch.ones(width))
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 32)
        self.fc2 = nn.Linear(32, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2) + self.position
        x = x + self.scale * self.attn(self.norm1(x))
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits


class Grouped(nn.Module):
    """A convolution of two groups, which leave as a whole, and a plain one behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.norm = nn.GroupNorm(1, 8)
        self.plain = nn.Conv2d(8, 16, 1)
        self.norm2 = nn.GroupNorm(1, 16)
        self.classifier = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(F.relu(self.grouped(F.relu(self.stem(x)))))
        logits: Tensor = self.classifier(self.norm2(F.relu(self.plain(x))).mean((2, 3)))
        return logits


class OneWhole(nn.Module):
    """Two branches of which one must be whole: each can be cut, and both cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(3, 16, 3, padding=1)
        self.plain = nn.Conv2d(32, 16, 1)
        self.classifier = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.first(x), self.second(x)], 1)
        if y.shape[1] < 32 and self.first.out_channels < 16 and self.second.out_channels < 16:
            raise ValueError("one of the branches must be whole")
        logits: Tensor = self.classifier(F.relu(self.plain(F.relu(y))).mean((2, 3)))
        return logits


def seeded(kind: type[nn.Module], seed: int = 0) -> nn.Module:
    """A network of the kind with weights from the seed, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind().eval()
