"""Single blocks, named and described by a few numbers: what a `replace` edit puts into a network.

Every block maps (N, C, H, W) to (N, C', ceil(H / stride), ceil(W / stride)), so that it can stand for one block of a
network, or for a run of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from pydantic import JsonValue, PositiveInt, field_validator
from torch import Tensor, nn

from edgekd.core.registry import Registry
from edgekd.core.schema import Schema
from edgekd.nn.models.init import init_convolutions_
from edgekd.nn.models.repvgg import RepVggBlock

BlockBuilder = Callable[[Mapping[str, JsonValue]], nn.Module]
"""From an edit's kwargs to a randomly initialised block; raises `UserError` for kwargs that do not fit."""

BLOCKS: Registry[BlockBuilder] = Registry(
    "block",
    {
        "identity": "edgekd.nn.blocks:identity_from_kwargs",
        "conv": "edgekd.nn.blocks:conv_from_kwargs",
        "repvgg": "edgekd.nn.blocks:repvgg_from_kwargs",
        "basic": "edgekd.nn.blocks:basic_from_kwargs",
        "inverted": "edgekd.nn.blocks:inverted_from_kwargs",
    },
)


class _NoArguments(Schema):
    """An identity has nothing to choose."""


class ConvArguments(Schema):
    """What every block needs to know of its place.

    Attributes:
        in_channels: C.
        channels: C'.
        stride: Factor by which height and width shrink.
        kernel: Side of the spatial kernels, odd.
        relu: Whether the block ends in a ReLU; a block that stands for one with negative outputs must not.
    """

    in_channels: PositiveInt
    channels: PositiveInt
    stride: PositiveInt = 1
    kernel: PositiveInt = 3
    relu: bool = True

    @field_validator("kernel")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("must be odd, so that the output has the size of the input")
        return value

    @property
    def keeps_shape(self) -> bool:
        """Whether the input can be added to the output."""
        return self.stride == 1 and self.in_channels == self.channels


class HiddenArguments(ConvArguments):
    """Of a block with an inner width.

    Attributes:
        hidden: Channels between the first and the last convolution.
    """

    hidden: PositiveInt


class RepVggArguments(ConvArguments):
    """Of a block that always has 3x3 kernels and ends in a ReLU."""

    kernel: Literal[3] = 3
    relu: Literal[True] = True


def identity_from_kwargs(kwargs: Mapping[str, JsonValue]) -> nn.Module:
    """A block that does nothing: the network gets shallower."""
    _NoArguments.parse(kwargs, "block 'identity'")
    return nn.Identity()


def conv_from_kwargs(kwargs: Mapping[str, JsonValue]) -> nn.Module:
    """One convolution with BatchNorm and, where the output has no negative values, ReLU: a single kernel on a device.

    Raises:
        UserError: The kwargs, the fields of `ConvArguments`, do not fit.
    """
    a = ConvArguments.parse(kwargs, "block 'conv'")
    block = nn.Sequential(*_conv(a.in_channels, a.channels, a.kernel, stride=a.stride), *_last(a))
    init_convolutions_(block)
    return block


def repvgg_from_kwargs(kwargs: Mapping[str, JsonValue]) -> nn.Module:
    """A `RepVggBlock`: residual while it trains, one 3x3 convolution and a ReLU where it is deployed.

    Raises:
        UserError: The kwargs, the fields of `RepVggArguments`, do not fit.
    """
    a = RepVggArguments.parse(kwargs, "block 'repvgg'")
    block = RepVggBlock(a.in_channels, a.channels, stride=a.stride)
    init_convolutions_(block)
    return block


def basic_from_kwargs(kwargs: Mapping[str, JsonValue]) -> nn.Module:
    """Two convolutions and a shortcut, with any width between them (He et al. 2015, arXiv 1512.03385).

    Raises:
        UserError: The kwargs, the fields of `HiddenArguments`, do not fit.
    """
    a = HiddenArguments.parse(kwargs, "block 'basic'")
    layers = nn.Sequential(
        *_conv(a.in_channels, a.hidden, a.kernel, stride=a.stride), nn.ReLU(), *_conv(a.hidden, a.channels, a.kernel)
    )
    shortcut: nn.Module = nn.Identity()
    if not a.keeps_shape:
        shortcut = nn.Sequential(*_conv(a.in_channels, a.channels, 1, stride=a.stride))
    return _Shortcut(layers, shortcut, nn.Sequential(*_last(a)))


def inverted_from_kwargs(kwargs: Mapping[str, JsonValue]) -> nn.Module:
    """Expand, filter per channel, project (Sandler et al. 2018, arXiv 1801.04381).

    With `hidden` equal to `in_channels` there is nothing to expand: a depthwise separable convolution. The input is
    added where the shapes agree.

    Raises:
        UserError: The kwargs, the fields of `HiddenArguments`, do not fit.
    """
    a = HiddenArguments.parse(kwargs, "block 'inverted'")
    expand = [] if a.hidden == a.in_channels else [*_conv(a.in_channels, a.hidden, 1), nn.ReLU6()]
    depthwise = [*_conv(a.hidden, a.hidden, a.kernel, stride=a.stride, groups=a.hidden), nn.ReLU6()]
    layers = nn.Sequential(*expand, *depthwise, *_conv(a.hidden, a.channels, 1))
    if not a.keeps_shape:
        block = nn.Sequential(layers, *_last(a))
        init_convolutions_(block)
        return block
    return _Shortcut(layers, nn.Identity(), nn.Sequential(*_last(a)))


class _Shortcut(nn.Module):
    """`last(layers(x) + shortcut(x))`."""

    def __init__(self, layers: nn.Module, shortcut: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.layers = layers
        self.shortcut = shortcut
        self.last = last
        init_convolutions_(self)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.layers(x) + self.shortcut(x))
        return out


def _conv(in_channels: int, channels: int, kernel: int, *, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(channels)]


def _last(a: ConvArguments) -> list[nn.Module]:
    return [nn.ReLU()] if a.relu else []
