"""What each ONNX operator computes, in torch: the vocabulary of `edgekd.nn.onnx_module`.

Only what classifiers consist of, in the default domain and in inference form: dropout is gone, BatchNorm and its
statistics are constants. An operator that is not here is refused by name, never approximated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor

Attributes: TypeAlias = Mapping[str, Any]
Value: TypeAlias = Tensor | None
Operator: TypeAlias = Callable[..., Tensor | tuple[Tensor, ...]]
"""Takes the node's inputs, None for one that is left out; returns its output or outputs."""
Maker: TypeAlias = Callable[[Attributes], Operator]
"""From a node's attributes to its operator."""

_SAME = ("SAME_UPPER", "SAME_LOWER")


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """The node's attributes as Python values, text as `str`."""
    found = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()}


def _conv(a: Attributes) -> Operator:
    def run(x: Tensor, weight: Tensor, bias: Value = None) -> Tensor:
        axes = weight.ndim - 2
        stride, dilation = a.get("strides", [1] * axes), a.get("dilations", [1] * axes)
        pads = _pads(a, x, list(weight.shape[2:]), stride, dilation)
        if pads[:axes] != pads[axes:]:
            x, pads = F.pad(x, _torch_pads(pads)), [0] * 2 * axes
        if x.device.type == "cpu" and max(stride) > 1 and max(weight.shape[2:]) == 1:
            # oneDNN computes wrong gradients for strided 1x1 convolutions in channels-last.
            x, weight = x.contiguous(), weight.contiguous()
        convolution: Any = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
        return convolution(x, weight, bias, stride, pads[:axes], dilation, a.get("group", 1))  # type: ignore[no-any-return]

    return run


def _pads(a: Attributes, x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """As ONNX has them: the beginnings of all axes, then the ends."""
    auto = a.get("auto_pad", "NOTSET")
    if auto not in _SAME:
        return list(a.get("pads", [0] * 2 * len(kernel))) if auto == "NOTSET" else [0] * 2 * len(kernel)
    total = []
    for size, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True):
        total.append(max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0))
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    return small + large if auto == "SAME_UPPER" else large + small


def _torch_pads(pads: Sequence[int]) -> list[int]:
    """(begin, end) pairs from the last axis to the first."""
    half = len(pads) // 2
    return [value for axis in reversed(range(half)) for value in (pads[axis], pads[half + axis])]


def _gemm(a: Attributes) -> Operator:
    def run(x: Tensor, y: Tensor, bias: Value = None) -> Tensor:
        x = x.t() if a.get("transA", 0) else x
        if a.get("transB", 0) and a.get("alpha", 1.0) == a.get("beta", 1.0) == 1.0 and (bias is None or bias.ndim == 1):
            return F.linear(x, y, bias)
        out: Tensor = a.get("alpha", 1.0) * (x @ (y.t() if a.get("transB", 0) else y))
        return out if bias is None else out + a.get("beta", 1.0) * bias

    return run


def _pool(a: Attributes, *, mean: bool) -> Operator:
    kernel = list(a["kernel_shape"])
    stride, dilation = a.get("strides", [1] * len(kernel)), a.get("dilations", [1] * len(kernel))

    def run(x: Tensor) -> Tensor:
        axes = len(kernel)
        pads = _pads(a, x, kernel, stride, dilation)
        counted = bool(a.get("count_include_pad", 0))
        ceil, whole = bool(a.get("ceil_mode", 0)), x
        if pads[:axes] != pads[axes:]:
            x = F.pad(x, _torch_pads(pads), value=0.0 if mean else float("-inf"))
            even = [0] * axes
        else:
            even = pads[:axes]
        if mean:
            average: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[axes - 1]
            found: Tensor = average(x, kernel, stride, even, ceil, counted)
            if x is whole or counted:
                return found
            # Torch pads alike on both sides only: what was padded by hand is taken out of the mean again.
            real = F.pad(torch.ones_like(whole[:1, :1]), _torch_pads(pads))
            share: Tensor = average(real, kernel, stride, even, ceil, counted)
            return found / share
        largest: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[axes - 1]
        return largest(x, kernel, stride, even, dilation, ceil)  # type: ignore[no-any-return]

    return run


def _reduce(a: Attributes, reduce: Callable[[Tensor, list[int], bool], Tensor]) -> Operator:
    """Axes come as an attribute up to opset 17 and as an input later on; none means all."""

    def run(x: Tensor, axes: Value = None) -> Tensor:
        chosen = list(a.get("axes", [])) if axes is None else axes.tolist()
        if not chosen:
            if a.get("noop_with_empty_axes", 0):
                return x
            chosen = list(range(x.ndim))
        return reduce(x, chosen, bool(a.get("keepdims", 1)))

    return run


def _clip(a: Attributes) -> Operator:
    def run(x: Tensor, low: Value = None, high: Value = None) -> Tensor:
        lowest = a.get("min") if low is None else low.item()
        highest = a.get("max") if high is None else high.item()
        return x if lowest is None and highest is None else x.clamp(lowest, highest)

    return run


def _reshape(a: Attributes) -> Operator:
    def run(x: Tensor, shape: Tensor) -> Tensor:
        sizes = shape.tolist()
        if not a.get("allowzero", 0):
            sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
        return x.reshape(sizes)

    return run


def _flatten(a: Attributes) -> Operator:
    axis = a.get("axis", 1)
    return lambda x: x.reshape(int(torch.tensor(x.shape[:axis]).prod()) if axis else 1, -1)


def _squeeze(a: Attributes) -> Operator:
    def run(x: Tensor, axes: Value = None) -> Tensor:
        chosen = a.get("axes") if axes is None else axes.tolist()
        return x.squeeze() if chosen is None else x.squeeze(tuple(chosen))

    return run


def _unsqueeze(a: Attributes) -> Operator:
    def run(x: Tensor, axes: Value = None) -> Tensor:
        chosen = a["axes"] if axes is None else axes.tolist()
        rank = x.ndim + len(chosen)
        for axis in sorted(axis % rank for axis in chosen):
            x = x.unsqueeze(axis)
        return x

    return run


def _slice(_a: Attributes) -> Operator:
    def run(x: Tensor, starts: Tensor, ends: Tensor, axes: Value = None, steps: Value = None) -> Tensor:
        chosen = list(range(len(starts))) if axes is None else axes.tolist()
        pace = [1] * len(chosen) if steps is None else steps.tolist()
        index = [slice(None)] * x.ndim
        for axis, start, end, step in zip(chosen, starts.tolist(), ends.tolist(), pace, strict=True):
            # Exporters write the largest integer for the end and the smallest for the start; ranges cut both.
            rows = range(x.shape[axis])[slice(start, end, step)]
            if step < 0:  # torch has no views that run backwards
                x = x.index_select(axis, torch.tensor(list(rows), device=x.device))
            else:
                index[axis] = slice(rows.start, rows.stop, rows.step)
        return x[tuple(index)]

    return run


def _split(a: Attributes) -> Operator:
    def run(x: Tensor, sizes: Value = None) -> tuple[Tensor, ...]:
        axis, given = a.get("axis", 0), a.get("split") if sizes is None else sizes.tolist()
        if given is not None:
            return torch.split(x, list(given), axis)
        return torch.chunk(x, a["num_outputs"], axis)

    return run


def _gather(a: Attributes) -> Operator:
    def run(x: Tensor, index: Tensor) -> Tensor:
        axis = a.get("axis", 0) % x.ndim
        picked = x.index_select(axis, (index.to(x.device).reshape(-1)) % x.shape[axis])
        return picked.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])

    return run


def _shape(a: Attributes) -> Operator:
    # On the device of what is computed, as constants are, so that both meet on one.
    return lambda x: torch.tensor(x.shape, device=x.device)[a.get("start", 0) : a.get("end")]


def _cast(a: Attributes) -> Operator:
    dtype = torch.from_numpy(onnx.numpy_helper.to_array(onnx.helper.make_tensor("t", a["to"], [0], []))).dtype
    return lambda x: x.to(dtype)


def _constant_of_shape(a: Attributes) -> Operator:
    value = torch.from_numpy(onnx.numpy_helper.to_array(a["value"]).copy()) if "value" in a else torch.zeros(1)
    return lambda shape: value.to(shape.device).expand(shape.tolist() or [1]).reshape(shape.tolist())


def _batch_norm(a: Attributes) -> Operator:
    eps = a.get("epsilon", 1e-5)
    return lambda x, scale, bias, mean, var: F.batch_norm(x, mean, var, scale, bias, False, 0.0, eps)


def _layer_norm(a: Attributes) -> Operator:
    def run(x: Tensor, scale: Tensor, bias: Value = None) -> Tensor:
        return F.layer_norm(x, x.shape[a.get("axis", -1) :], scale, bias, a.get("epsilon", 1e-5))

    return run


def _pad(a: Attributes) -> Operator:
    def run(x: Tensor, pads: Tensor, value: Value = None, axes: Value = None) -> Tensor:
        mode, given = a.get("mode", "constant"), pads.tolist()
        if axes is not None:
            every = [0] * 2 * x.ndim
            for place, axis in enumerate(axes.tolist()):
                every[axis % x.ndim] = given[place]
                every[x.ndim + axis % x.ndim] = given[len(given) // 2 + place]
            given = every
        amounts = _torch_pads(given)
        if mode == "constant":
            return F.pad(x, amounts, value=0.0 if value is None else value.item())
        while len(amounts) > 2 and amounts[-2:] == [0, 0]:
            amounts = amounts[:-2]  # torch mirrors inner axes only
        return F.pad(x, amounts, mode={"reflect": "reflect", "edge": "replicate"}[mode])

    return run


def _expand(x: Tensor, shape: Tensor) -> Tensor:
    sizes = shape.tolist()
    have = [1] * (len(sizes) - x.ndim) + list(x.shape)
    sizes = [1] * (len(have) - len(sizes)) + sizes  # the shape may name fewer axes, and ones for axes that are larger
    return x.expand([old if new == 1 else new for old, new in zip(have, sizes, strict=True)])


def _range(start: Tensor, end: Tensor, step: Tensor) -> Tensor:
    return torch.arange(start.item(), end.item(), step.item(), dtype=start.dtype, device=start.device)


def _divide(x: Tensor, y: Tensor) -> Tensor:
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def _fold(combine: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    def run(*values: Tensor) -> Tensor:
        out = values[0]
        for value in values[1:]:
            out = combine(out, value)
        return out

    return run


def _plain(function: Operator) -> Maker:
    return lambda _: function


def _global_pool(reduce: Callable[[Tensor, list[int]], Tensor]) -> Maker:
    return lambda _: lambda x: reduce(x, list(range(2, x.ndim)))


OPERATORS: Mapping[str, Maker] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _plain(torch.matmul),
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "MaxPool": lambda a: _pool(a, mean=False),
    "AveragePool": lambda a: _pool(a, mean=True),
    "GlobalAveragePool": _global_pool(lambda x, axes: x.mean(axes, keepdim=True)),
    "GlobalMaxPool": _global_pool(lambda x, axes: x.amax(axes, keepdim=True)),
    "ReduceMean": lambda a: _reduce(a, lambda x, axes, keep: x.mean(axes, keep)),
    "ReduceSum": lambda a: _reduce(a, lambda x, axes, keep: x.sum(axes, keep)),
    "ReduceMax": lambda a: _reduce(a, lambda x, axes, keep: x.amax(axes, keep)),
    "Relu": _plain(torch.relu),
    "LeakyRelu": lambda a: lambda x: F.leaky_relu(x, a.get("alpha", 0.01)),
    "PRelu": _plain(lambda x, slope: torch.where(x < 0, x * slope, x)),
    "Elu": lambda a: lambda x: F.elu(x, a.get("alpha", 1.0)),
    "Gelu": lambda a: lambda x: F.gelu(x, approximate=a.get("approximate", "none")),
    "Clip": _clip,
    "Sigmoid": _plain(torch.sigmoid),
    "HardSigmoid": lambda a: lambda x: (a.get("alpha", 0.2) * x + a.get("beta", 0.5)).clamp(0, 1),
    "HardSwish": _plain(F.hardswish),
    "Mish": _plain(F.mish),
    "Softplus": _plain(F.softplus),
    "Swish": lambda a: lambda x: x * torch.sigmoid(a.get("alpha", 1.0) * x),
    "Tanh": _plain(torch.tanh),
    "Erf": _plain(torch.erf),
    "Softmax": lambda a: lambda x: F.softmax(x, a.get("axis", -1)),
    "Add": _plain(torch.add),
    "Sub": _plain(torch.sub),
    "Mul": _plain(torch.mul),
    "Div": _plain(_divide),
    "Pow": _plain(torch.pow),
    "Sqrt": _plain(torch.sqrt),
    "Exp": _plain(torch.exp),
    "Neg": _plain(torch.neg),
    "Abs": _plain(torch.abs),
    "Reciprocal": _plain(torch.reciprocal),
    "Min": _plain(_fold(torch.minimum)),
    "Max": _plain(_fold(torch.maximum)),
    "Sum": _plain(_fold(torch.add)),
    "Where": _plain(torch.where),
    "Equal": _plain(torch.eq),
    "Range": _plain(_range),
    "Identity": _plain(lambda x: x),
    "Dropout": _plain(lambda x, *_: x),
    "Cast": _cast,
    "Shape": _shape,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": lambda a: lambda x: x.permute(a["perm"] if "perm" in a else list(reversed(range(x.ndim)))),
    "Expand": _plain(_expand),
    "ConstantOfShape": _constant_of_shape,
    "Concat": lambda a: lambda *xs: torch.cat(xs, a["axis"]),
    "Slice": _slice,
    "Split": _split,
    "Gather": _gather,
    "Pad": _pad,
}
