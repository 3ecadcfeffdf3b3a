"""Small networks in the manner of known families, each with what makes its channels hard to follow."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Net(nn.Module):
    """A stem, a body of 16 channels and a linear classifier of its pooled channels."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.classifier = nn.Linear(channels, 4)

    def body(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(F.relu(self.stem(x)))
        logits: Tensor = self.classifier(y.mean((2, 3)))
        return logits


class Inverted(_Net):
    """EfficientNet: expanded, depthwise, gated by squeeze and excitation, projected, added."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.bn = nn.Conv2d(16, 48, 1, bias=False), nn.BatchNorm2d(48)
        self.depthwise, self.bn2 = nn.Conv2d(48, 48, 3, padding=1, groups=48), nn.BatchNorm2d(48)
        self.squeeze, self.excite = nn.Conv2d(48, 8, 1), nn.Conv2d(8, 48, 1)
        self.project = nn.Conv2d(48, 16, 1)

    def body(self, x: Tensor) -> Tensor:
        y = F.silu(self.bn2(self.depthwise(F.silu(self.bn(self.expand(x))))))
        y = y * self.excite(F.silu(self.squeeze(y.mean((2, 3), keepdim=True)))).sigmoid()
        return x + self.project(y)


class Bottleneck(_Net):
    """RegNet: the middle convolution has groups of several channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(16, 32, 1), nn.BatchNorm2d(32)
        self.conv2, self.bn2 = nn.Conv2d(32, 32, 3, padding=1, groups=4), nn.BatchNorm2d(32)
        self.conv3 = nn.Conv2d(32, 16, 1)

    def body(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(x + self.conv3(F.relu(self.bn2(self.conv2(y)))))


class GroupedChain(_Net):
    """Convolutions of four and of two groups in a row, around which the stream is added."""

    def __init__(self) -> None:
        super().__init__()
        self.four = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.two, self.last = nn.Conv2d(16, 16, 3, padding=1, groups=2), nn.Conv2d(16, 16, 1)

    def body(self, x: Tensor) -> Tensor:
        return F.relu(self.last(x + F.relu(self.two(F.relu(self.four(x))))))


class Concatenated(_Net):
    """DenseNet: BatchNorm behind a concatenation, which holds the channels of several layers."""

    def __init__(self) -> None:
        super().__init__(channels=24)
        self.bn1, self.grow1 = nn.BatchNorm2d(16), nn.Conv2d(16, 8, 3, padding=1)
        self.bn2, self.grow2 = nn.BatchNorm2d(24), nn.Conv2d(24, 8, 3, padding=1)
        self.bn3, self.transition = nn.BatchNorm2d(32), nn.Conv2d(32, 24, 1)

    def body(self, x: Tensor) -> Tensor:
        x = torch.cat([x, self.grow1(F.relu(self.bn1(x)))], 1)
        x = torch.cat([x, self.grow2(F.relu(self.bn2(x)))], 1)
        y: Tensor = self.transition(F.relu(self.bn3(x)))
        return y


class Shuffled(_Net):
    """ShuffleNet: half of the channels pass by, and both halves are interleaved."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.last = nn.Conv2d(16, 16, 1)

    def body(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        passed, read = x.chunk(2, 1)
        y = torch.cat([passed, self.second(F.relu(self.first(read)))], 1)
        y = y.view(n, 2, channels // 2, height, width).transpose(1, 2).reshape(n, channels, height, width)
        return F.relu(self.last(y))


class Gated(_Net):
    """A gated linear unit: one half of the channels is multiplied with the other."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.plain = nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(16, 16, 1)

    def body(self, x: Tensor) -> Tensor:
        return F.relu(self.plain(F.glu(self.wide(x), 1)))


class Upsampled(_Net):
    """Sub-pixel convolution: four channels become one of twice the size."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.shuffle = nn.Conv2d(16, 32, 3, padding=1), nn.PixelShuffle(2)
        self.plain = nn.Conv2d(8, 16, 3, padding=1)

    def body(self, x: Tensor) -> Tensor:
        return F.relu(self.plain(F.relu(self.shuffle(self.wide(x)))))


class WindowAttention(nn.Module):
    """Swin: as timm writes it, without an attribute `head_dim`, and with a learned bias per head and distance."""

    def __init__(self, width: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.num_heads, self.scale = heads, (width // heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.randn(2 * tokens - 1, heads))
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        places = torch.arange(tokens)
        self.register_buffer("relative_position_index", places[:, None] - places[None, :] + tokens - 1)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        weights = (self.scale * q @ k.transpose(-2, -1) + bias).softmax(-1)
        y: Tensor = self.proj((weights @ v).transpose(1, 2).reshape(n, tokens, -1))
        return y


class FixedAttention(WindowAttention):
    """The same, with the width of its input taken for that of all its heads."""

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.num_heads, width // self.num_heads).unbind(2)
        weights = (self.scale * q.transpose(1, 2) @ k.permute(0, 2, 3, 1)).softmax(-1)
        y: Tensor = self.proj((weights @ v.transpose(1, 2)).transpose(1, 2).reshape(n, tokens, width))
        return y


class Windowed(nn.Module):
    """A block of Swin over four patches."""

    attention: type[WindowAttention] = WindowAttention

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 4, 4)
        self.norm1, self.attn = nn.LayerNorm(16), self.attention(16, 4, 4)
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = x + self.attn(self.norm1(x))
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        logits: Tensor = self.head(x.mean(1))
        return logits


class FixedHeads(Windowed):
    attention = FixedAttention


class Mixer(nn.Module):
    """MLP-Mixer: linear layers over tokens, then over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 20, 2, 2)
        self.norm1, self.tokens1, self.tokens2 = nn.LayerNorm(20), nn.Linear(16, 24), nn.Linear(24, 16)
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(20), nn.Linear(20, 32), nn.Linear(32, 20)
        self.head = nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = x + self.tokens2(F.gelu(self.tokens1(self.norm1(x).transpose(1, 2)))).transpose(1, 2)
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        logits: Tensor = self.head(x.mean(1))
        return logits


class Recurrent(nn.Module):
    """A recurrent layer reads the columns of what two convolutions made."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.rnn = nn.GRU(16, 12, batch_first=True)
        self.classifier = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rnn(self.conv(F.relu(self.stem(x))).mean(2).transpose(1, 2))
        logits: Tensor = self.classifier(states[:, -1])
        return logits
