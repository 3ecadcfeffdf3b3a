"""What a classifier computes on its way to the logits: the embedding and the last feature map.

The places are found by running the network once, not by the names of layers, so they exist for models of any library.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edgekd.core.schema import Schema
from edgekd.errors import UserError
from edgekd.nn.mode import evaluating
from edgekd.nn.shapes import example_images

EMBEDDING = "embedding"
FEATURE_MAP = "feature_map"


class TapPoints(Schema):
    """Where to listen, as module paths.

    Attributes:
        classifier: The last layer that gives K values: a Linear or a 1x1 convolution. Its input is the embedding.
        feature_map: The last module in front of it whose output is (N, C, H, W) with more than one pixel; None for
            networks without one, such as vision transformers.
    """

    classifier: str
    feature_map: str | None


class TapOutput(NamedTuple):
    """One forward pass.

    Attributes:
        logits: (N, K), unnormalised.
        embedding: (N, D), the classifier's input; averaged over pixels or tokens where it has them. None if unasked.
        feature_map: (N, C, H, W), None if unasked.
    """

    logits: Tensor
    embedding: Tensor | None
    feature_map: Tensor | None


class Taps(nn.Module):
    """A classifier that returns what was asked for beside its logits; it trains and distributes like any module.

    Nothing stays behind in the wrapped `module`: hooks live for one call.

    Args:
        module: Images (N, C, H, W) to logits (N, K); `taps.module` is the same object.
        want: Any of `"embedding"` and `"feature_map"`.
        input_shape: (C, H, W) of one image, for the pass that finds the places; none runs when nothing is wanted.

    Raises:
        UserError: Something is wanted that the network does not have.
    """

    def __init__(self, module: nn.Module, want: Collection[str], input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.module = module
        self.want = frozenset(str(name) for name in want)
        unknown = self.want - {EMBEDDING, FEATURE_MAP}
        if unknown:
            raise UserError(f"A tap is {EMBEDDING!r} or {FEATURE_MAP!r}, not {sorted(unknown)}.")
        self.points = find_tap_points(module, input_shape) if self.want else None
        if FEATURE_MAP in self.want and self.points is not None and self.points.feature_map is None:
            raise UserError(
                f"No layer of this {type(module).__name__} gives a feature map (N, C, H, W).",
                hint="choose an objective that needs logits or embeddings only: edgekd objectives",
            )

    def forward(self, images: Tensor) -> TapOutput:
        heard: dict[str, Tensor] = {}
        with self._listening(heard):
            logits = self.module(images)
        return TapOutput(logits, heard.get(EMBEDDING), heard.get(FEATURE_MAP))

    @contextmanager
    def _listening(self, heard: dict[str, Tensor]) -> Iterator[None]:
        handles = []
        if self.points is not None and EMBEDDING in self.want:

            def hear_input(part: nn.Module, args: tuple[Tensor, ...]) -> None:
                heard[EMBEDDING] = _embedding(args[0], channels_last=isinstance(part, nn.Linear))

            classifier = self.module.get_submodule(self.points.classifier)
            handles.append(classifier.register_forward_pre_hook(hear_input))
        if self.points is not None and self.points.feature_map is not None and FEATURE_MAP in self.want:

            def hear_output(_: nn.Module, args: object, output: Tensor) -> None:
                heard[FEATURE_MAP] = output

            handles.append(self.module.get_submodule(self.points.feature_map).register_forward_hook(hear_output))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def find_tap_points(module: nn.Module, input_shape: tuple[int, int, int]) -> TapPoints:
    """The places, from one forward pass over zeros.

    Args:
        module: Images to logits; left as it was.
        input_shape: (C, H, W).

    Raises:
        UserError: No Linear or 1x1 convolution gives K values.
    """
    trace: list[_Call] = []
    handles = [part.register_forward_hook(_recorder(path, trace)) for path, part in module.named_modules() if path]
    try:
        with evaluating(module), torch.no_grad():
            classes = module(example_images(module, input_shape)).shape[1]
    finally:
        for handle in handles:
            handle.remove()
    heads = [index for index, call in enumerate(trace) if call.heads == classes]
    if not heads:
        raise UserError(
            f"No Linear layer or 1x1 convolution of this {type(module).__name__} gives its {classes} logits, so it has "
            "no embedding to distil.",
            hint="choose an objective that needs logits only: edgekd objectives",
        )
    classifier = trace[heads[-1]]
    return TapPoints(classifier=classifier.path, feature_map=_last_map(trace[: heads[-1]], classifier.width))


@dataclass(frozen=True)
class _Call:
    """One finished call of a module; calls are listed in the order in which they finish.

    Attributes:
        path: Of the module.
        heads: Output values of a Linear or 1x1 convolution, else None.
        width: Its input values.
        shape: Of the output, empty when it is no tensor.
    """

    path: str
    heads: int | None
    width: int | None
    shape: tuple[int, ...]


def _recorder(path: str, trace: list[_Call]) -> Callable[[nn.Module, Any, Any], None]:
    def record(part: nn.Module, args: object, output: object) -> None:
        heads = width = None
        if isinstance(part, nn.Linear) or (isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1)):
            heads, width = part.weight.shape[:2]
        trace.append(_Call(path, heads, width, tuple(output.shape) if isinstance(output, Tensor) else ()))

    return record


def _last_map(trace: list[_Call], width: int | None) -> str | None:
    """The last call that gives several positions, when they are the pixels of (N, C, H, W).

    They are tokens in (N, T, D), and pixels of another layout in (N, H, W, D), with D the width of the embedding.
    """
    for call in reversed(trace):
        if len(call.shape) == 3 and call.shape[1] > 1:
            return None
        if len(call.shape) == 4 and 1 not in (call.shape[1] * call.shape[2], call.shape[2] * call.shape[3]):
            return None if call.shape[3] == width != call.shape[1] else call.path
    return None


def _embedding(x: Tensor, *, channels_last: bool) -> Tensor:
    """(N, D) from the input of a Linear, (N, ..., D), or of a 1x1 convolution, (N, D, H, W)."""
    if x.ndim == 2:
        return x
    return x.flatten(1, -2).mean(1) if channels_last else x.flatten(2).mean(2)
