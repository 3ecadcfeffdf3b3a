"""Which layer an ATen operator was, from the arguments of one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

Arguments = Mapping[str, Any]
"""By the names in the operator's schema, defaults included."""


def layer_from_call(operator: str, arguments: Arguments, *, axes: int) -> nn.Module | None:
    """A layer whose call equals the operator's, its weights not set; None when the operator is no layer.

    Args:
        operator: Name without namespace and overload, `conv2d`.
        arguments: A tensor that is computed in the graph, rather than held by the module, is not a `Tensor` here.
        axes: Of the input.
    """
    maker = _MAKERS.get(operator)
    return None if maker is None else maker(arguments, axes)


def _convolution(a: Arguments, axes: int) -> nn.Module | None:
    weight = a["weight"]
    if not isinstance(weight, Tensor) or not _held(a["bias"]) or axes != 4 or weight.ndim != 4:
        return None
    if a.get("transposed", False):
        return None
    groups = a["groups"]
    padding = a["padding"] if isinstance(a["padding"], str) else _pair(a["padding"])
    return nn.Conv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        _pair(list(weight.shape[2:])),
        _pair(a["stride"]),
        padding,
        _pair(a["dilation"]),
        groups,
        bias=a["bias"] is not None,
    )


def _linear(a: Arguments, axes: int) -> nn.Module | None:
    weight = a["weight"]
    if not isinstance(weight, Tensor) or not _held(a["bias"]):
        return None
    return nn.Linear(weight.shape[1], weight.shape[0], bias=a["bias"] is not None)


def _batch_norm(a: Arguments, axes: int) -> nn.Module | None:
    kinds: dict[int, type[nn.Module]] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    mean = a["running_mean"]
    if not isinstance(mean, Tensor) or not _held(a["weight"]) or a["training"] or axes not in kinds:
        return None
    return kinds[axes](mean.numel(), eps=a["eps"], momentum=a["momentum"], affine=a["weight"] is not None)


def _layer_norm(a: Arguments, axes: int) -> nn.Module | None:
    if not _held(a["weight"]) or not _held(a["bias"]):
        return None
    affine = a["weight"] is not None
    return nn.LayerNorm(
        list(a["normalized_shape"]), eps=a["eps"], elementwise_affine=affine, bias=a["bias"] is not None
    )


def _group_norm(a: Arguments, axes: int) -> nn.Module | None:
    weight = a["weight"]
    # Without a weight the number of channels is not among the arguments.
    if not isinstance(weight, Tensor) or not isinstance(a["bias"], Tensor):
        return None
    return nn.GroupNorm(a["num_groups"], weight.numel(), eps=a["eps"])


def _hardtanh(a: Arguments, axes: int) -> nn.Module | None:
    low, high = a["min_val"], a["max_val"]
    return nn.ReLU6() if (low, high) == (0, 6) else nn.Hardtanh(low, high)


def _max_pool(a: Arguments, axes: int) -> nn.Module | None:
    stride = _pair(a["stride"]) if a["stride"] else None
    return nn.MaxPool2d(
        _pair(a["kernel_size"]), stride, _pair(a["padding"]), _pair(a["dilation"]), ceil_mode=a["ceil_mode"]
    )


def _avg_pool(a: Arguments, axes: int) -> nn.Module | None:
    stride = _pair(a["stride"]) if a["stride"] else None
    return nn.AvgPool2d(
        _pair(a["kernel_size"]),
        stride,
        _pair(a["padding"]),
        a["ceil_mode"],
        a["count_include_pad"],
        a["divisor_override"],
    )


_MAKERS: dict[str, Callable[[Arguments, int], nn.Module | None]] = {
    "conv2d": _convolution,
    "convolution": _convolution,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "relu": lambda a, axes: nn.ReLU(),
    "relu6": lambda a, axes: nn.ReLU6(),
    "hardtanh": _hardtanh,
    "hardswish": lambda a, axes: nn.Hardswish(),
    "hardsigmoid": lambda a, axes: nn.Hardsigmoid(),
    "silu": lambda a, axes: nn.SiLU(),
    "sigmoid": lambda a, axes: nn.Sigmoid(),
    "gelu": lambda a, axes: nn.GELU(a["approximate"]),
    "leaky_relu": lambda a, axes: nn.LeakyReLU(a["negative_slope"]),
    "dropout": lambda a, axes: nn.Dropout(a["p"]),
    "feature_dropout": lambda a, axes: nn.Dropout2d(a["p"]),
    "adaptive_avg_pool2d": lambda a, axes: nn.AdaptiveAvgPool2d(_pair(a["output_size"])),
    "avg_pool2d": _avg_pool,
    "max_pool2d": _max_pool,
}


def _held(value: object) -> bool:
    """Whether an optional weight is absent or held by the module, rather than computed."""
    return value is None or isinstance(value, Tensor)


def _pair(value: int | list[int]) -> tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value)
    return (values[0], values[-1])
