"""Listens to the torch functions of a forward pass, and answers some of them in their place.

Hooks on modules would miss what a network calls as a function (`F.relu`), which models of other libraries often do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

Answer = Callable[[str, Tensor], Tensor | None]
"""From the name of a function (`relu`, without trailing underscores) and its first tensor to a result, or None to let
the function run."""

ACTIVATIONS = frozenset(
    {
        *("relu", "relu6", "hardtanh", "leaky_relu", "prelu", "rrelu", "elu", "celu", "selu"),
        *("silu", "hardswish", "gelu", "mish", "softplus"),
    }
)
"""Activations that let positive inputs pass and hold negative ones back. Gates (`sigmoid`) are none."""

NORMS = frozenset({"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"})


class Intercept(TorchFunctionMode):
    """Gives each function call on a tensor to `answer` before it runs."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self._answer = answer

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        first = args[0] if args else given.get("input")
        if isinstance(first, Tensor):
            answered = self._answer(getattr(func, "__name__", "").strip("_"), first)
            if answered is not None:
                return answered
        return func(*args, **given)
