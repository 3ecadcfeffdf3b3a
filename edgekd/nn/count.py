"""What a network costs, operation by operation: multiply-accumulates, stored values, elements moved.

Every operation that reaches the dispatcher is seen, functional ones included. One image is really computed: on the
networks of edge devices that takes less time than propagating shapes alone does, and control flow needs no exception.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from edgekd.core.cost import OpCost, OpKind
from edgekd.nn.mode import evaluating
from edgekd.nn.shapes import example_images


def layer_costs(module: nn.Module, input_shape: tuple[int, int, int]) -> tuple[OpCost, ...]:
    """The operations of one image's forward pass in evaluation mode, in the order in which they run.

    An operation of a leaf module carries the module's path, any other one its own name under the path of the module
    whose code called it. Only convolutions and matrix products have multiply-accumulates. Views move nothing and are
    left out. The parameters of a layer that runs twice are counted twice, for they are read twice.

    Args:
        module: Left as it was.
        input_shape: (C, H, W).
    """
    recorder, images = _Recorder(module), example_images(module, input_shape)
    with evaluating(module), torch.no_grad(), recorder.following(module):
        module(images)
    return tuple(recorder.costs)


def count_macs(module: nn.Module, input_shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates of one image's forward pass."""
    return sum(cost.macs for cost in layer_costs(module, input_shape))


def count_params(module: nn.Module) -> int:
    """Parameters, each counted once; buffers are not counted."""
    return sum(parameter.numel() for parameter in module.parameters())


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Turns each dispatched operation into an `OpCost`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.costs: list[OpCost] = []
        self.stack: list[tuple[str, bool]] = []
        """(path, is leaf) of the modules that are running."""
        self.stored: MutableMapping[Tensor, bool] = WeakTensorKeyDictionary()
        """Weights (true), other constants (false), and views of either."""
        self.made_by: MutableMapping[Tensor, OpKind] = WeakTensorKeyDictionary()
        """The kind of operation that made each activation."""
        for tensor in (*module.parameters(), *module.buffers()):
            self.stored[tensor] = isinstance(tensor, nn.Parameter)

    @contextmanager
    def following(self, module: nn.Module) -> Iterator[None]:
        """Records what `module` does while the block runs."""
        handles = []
        for path, part in module.named_modules():
            handles.append(part.register_forward_pre_hook(self._entering(path, next(part.children(), None) is None)))
            handles.append(part.register_forward_hook(self._leaving))
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _entering(self, path: str, leaf: bool) -> Callable[[nn.Module, Any], None]:
        return lambda _, args: self.stack.append((path, leaf))

    def _leaving(self, module: nn.Module, args: object, output: object) -> None:
        self.stack.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        operator = func.overloadpacket.__name__.strip("_")
        read = [value for value in _flat((args, kwargs)) if isinstance(value, Tensor)]
        written = [value for value in _flat(output) if isinstance(value, Tensor)]
        moving = [value for value in read if value not in self.stored]
        if not moving:
            # A view of a weight, or a constant: read with the operation that uses it.
            for value in written:
                self.stored[value] = any(self.stored[source] for source in read)
        elif func.is_view or operator in _FREE:
            for value in written:
                if moving[0] in self.made_by:
                    self.made_by[value] = self.made_by[moving[0]]
        elif written:
            self._count(operator, args, read, moving, written)
        return output

    def _count(self, operator: str, args: Any, read: list[Tensor], moving: list[Tensor], written: list[Tensor]) -> None:
        kind, macs = _kind_and_macs(operator, args, read, written[0])
        path, leaf = self.stack[-1] if self.stack else ("", False)
        folded = _FOLDED_INTO.get("batch_norm" if operator in _BATCH_NORMS else kind, frozenset())
        self.costs.append(
            OpCost(
                name=path if leaf and path else f"{path}.{operator}".strip("."),
                kind=kind,
                macs=macs,
                params=sum(value.numel() for value in read if self.stored.get(value, False)),
                # Further outputs are statistics and indices, which inference does not keep.
                activations=sum(value.numel() for value in (*moving, written[0])),
                fused=self.made_by.get(moving[0]) in folded,
            )
        )
        self.made_by[written[0]] = kind


_BATCH_NORMS = frozenset({"native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "batch_norm_with_update"})
_FOLDED_INTO: dict[str, frozenset[OpKind]] = {
    "batch_norm": frozenset({"conv", "depthwise", "linear"}),
    "activation": frozenset({"conv", "depthwise", "linear", "norm", "add"}),
}
_FREE = frozenset({"unsafe_view", "reshape", "as_strided", "lift_fresh", "detach"})
_KINDS: dict[str, OpKind] = {
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm", "linear", "mkldnn_linear"), "linear"),
    **dict.fromkeys((*_BATCH_NORMS, "native_layer_norm", "fused_rms_norm", "native_group_norm"), "norm"),
    **dict.fromkeys(("relu", "relu6", "hardtanh", "clamp", "clamp_min", "clamp_max", "hardswish"), "activation"),
    **dict.fromkeys(("hardsigmoid", "silu", "sigmoid", "gelu", "elu", "leaky_relu", "mish", "tanh"), "activation"),
    **dict.fromkeys(("max_pool2d_with_indices", "avg_pool2d", "adaptive_avg_pool2d", "mean", "amax"), "pool"),
    **dict.fromkeys(("add", "sub", "mul", "div"), "add"),
}


def _kind_and_macs(operator: str, args: Any, read: list[Tensor], output: Tensor) -> tuple[OpKind, int]:
    """Family and multiply-accumulates; `read` are the tensors among the arguments, in their order."""
    if operator == "convolution":
        image, weight, _, _, _, _, transposed, _, groups = args
        # Each value that is written gathers one filter; each value that a transposed one reads spreads one.
        values = image if transposed else output
        depthwise = groups == image.shape[1] > 1
        return ("depthwise" if depthwise else "conv"), values.numel() * math.prod(weight.shape[1:])
    if "scaled_dot_product" in operator:
        query, key, value = read[:3]
        # Q K^T, then the product with V: both touch every pair of a query and a key.
        pairs = query.numel() // query.shape[-1] * key.shape[-2]
        return "linear", pairs * (query.shape[-1] + value.shape[-1])
    kind = _KINDS.get(operator, "other")
    if kind != "linear":
        return kind, 0
    factor = read[-2] if operator in ("mm", "addmm", "bmm", "baddbmm") else read[0]
    return kind, output.numel() * factor.shape[-1]


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _flat(item)
    else:
        yield value
