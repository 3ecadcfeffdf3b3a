"""Where a network ends its stages: the last feature map of each resolution, for objectives that compare depth by depth.

timm's models declare their stages. Those of any other network are found by running it once and watching where the
resolution falls. Transformers and mixers keep tokens: these are maps where they form the grid of the image's patches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edgekd.core.schema import Schema
from edgekd.nn.mode import evaluating
from edgekd.nn.shapes import example_images

_MOST_PREFIX_TOKENS = 5
"""Class, distillation and register tokens in front of the patches."""
_DEPTHS = 4
"""Maps of a network that declares its blocks and has a single resolution: at equal distances in depth."""

Layout = Literal["NCHW", "NHWC", "tokens"]


class StagePoint(Schema):
    """One place to listen.

    Attributes:
        path: Of the module whose output it is.
        call: Which call of that module in one pass, from 0: a shared ReLU is called at many depths.
        layout: Of that output.
        height: H of the map.
        width: W of the map.
    """

    path: str
    call: int = 0
    layout: Layout
    height: int
    width: int

    def read(self, output: Tensor) -> Tensor:
        """(N, C, H, W) from the module's output; a view where it can be one."""
        if self.layout == "NCHW":
            return output
        if self.layout == "NHWC":
            return output.permute(0, 3, 1, 2)
        patches = output[:, -self.height * self.width :]  # class tokens come first
        return patches.transpose(1, 2).reshape(len(output), -1, self.height, self.width)


def find_stage_points(
    module: nn.Module, input_shape: tuple[int, int, int], classifier: str | None = None
) -> tuple[StagePoint, ...]:
    """The end of each stage, from the image to the classifier; empty where no layer gives a map.

    Args:
        module: Images (N, C, H, W) to logits; left as it was.
        input_shape: (C, H, W).
        classifier: Path of the classifier; what runs after it is not looked at.
    """
    calls = _traced(module, input_shape, classifier)
    declared = _declared(module, calls, input_shape)
    return declared or _by_resolution(calls, input_shape)


@dataclass(frozen=True)
class _Call:
    """One finished call of a module, in the order in which they finish.

    Attributes:
        path: Of the module.
        number: Which call of that module it is, from 0.
        chain: Whether the module merely calls its children one after the other.
        before: Shape of its first input; empty when that is no tensor.
        after: Shape of its output; empty when it is no tensor.
    """

    path: str
    number: int
    chain: bool
    before: tuple[int, ...]
    after: tuple[int, ...]


def _traced(module: nn.Module, input_shape: tuple[int, int, int], classifier: str | None) -> list[_Call]:
    calls: list[_Call] = []

    def recorder(path: str) -> Callable[[nn.Module, Any, Any], None]:
        numbers = count()

        def record(part: nn.Module, args: Any, output: Any) -> None:
            first = args[0] if args and isinstance(args[0], Tensor) else None
            before = () if first is None else tuple(first.shape)
            after = tuple(output.shape) if isinstance(output, Tensor) else ()
            calls.append(_Call(path, next(numbers), isinstance(part, nn.Sequential), before, after))

        return record

    handles = [part.register_forward_hook(recorder(path)) for path, part in module.named_modules() if path]
    try:
        with evaluating(module), torch.no_grad():
            module(example_images(module, input_shape))
    finally:
        for handle in handles:
            handle.remove()
    ends = [number for number, call in enumerate(calls) if call.path == classifier]
    return calls[: ends[-1]] if ends else calls


def _declared(module: nn.Module, calls: Sequence[_Call], input_shape: tuple[int, int, int]) -> tuple[StagePoint, ...]:
    """The stages of timm's `feature_info`; empty where there is none, or where it does not fit what was traced."""
    info = getattr(module, "feature_info", None)
    entries: Any = getattr(info, "info", info)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return ()
    last = {call.path: call for call in calls}
    points = []
    for entry in entries:
        call, channels = last.get(str(entry.get("module"))), entry.get("num_chs")
        if call is None or channels not in call.after[1:]:
            return ()
        point = _point(call, input_shape, channels)
        if point is not None:  # a small image ends in a single pixel, which is no map
            points.append(point)
    if len(points) > _DEPTHS and len({(point.height, point.width) for point in points}) == 1:
        points = [points[len(points) * (number + 1) // _DEPTHS - 1] for number in range(_DEPTHS)]
    return tuple(points)


def _point(call: _Call, input_shape: tuple[int, int, int], channels: int | None) -> StagePoint | None:
    """A map of more than one pixel in the output of this call, None when there is none.

    Args:
        call: On one image.
        input_shape: (C, H, W) of the image.
        channels: As declared; None tells the layout by which two axes have the proportions of the image.
    """
    shape = call.after
    if shape[:1] != (1,):
        return None  # windows of an attention, for example: not one image
    if len(shape) == 4:
        first = channels == shape[1] if channels is not None else proportional(shape[2:], input_shape)
        if first:
            return _map(call, "NCHW", shape[2], shape[3])
        last = channels == shape[3] if channels is not None else proportional(shape[1:3], input_shape)
        if last:
            return _map(call, "NHWC", shape[1], shape[2])
    if len(shape) == 3 and channels in (None, shape[2]):
        grid = _grid(shape[1], input_shape)
        return None if grid is None else _map(call, "tokens", *grid)
    return None


def _map(call: _Call, layout: Layout, height: int, width: int) -> StagePoint | None:
    if height * width == 1:
        return None
    return StagePoint(path=call.path, call=call.number, layout=layout, height=height, width=width)


def proportional(size: tuple[int, ...], input_shape: tuple[int, int, int]) -> bool:
    """Whether a map has the proportions of the image, to within one pixel."""
    (height, width), (_, image_height, image_width) = size, input_shape
    return abs(height * image_width - width * image_height) < max(image_height, image_width)


def _grid(tokens: int, input_shape: tuple[int, int, int]) -> tuple[int, int] | None:
    """(H, W) of the patches among so many tokens, in the proportions of the image; None where they form no grid."""
    _, image_height, image_width = input_shape
    for prefix in range(_MOST_PREFIX_TOKENS + 1):
        patches = tokens - prefix
        height = math.isqrt(max(0, patches * image_height // image_width))
        if patches < 2 or not height or patches % height:
            continue
        if height * image_width == patches // height * image_height:
            return height, patches // height
    return None


def _by_resolution(calls: Sequence[_Call], input_shape: tuple[int, int, int]) -> tuple[StagePoint, ...]:
    """The last map of each resolution, as resolutions fall; the last call is the outermost, shortcut included."""
    found = [(number, _point(call, input_shape, None)) for number, call in enumerate(calls)]
    maps = [(number, point) for number, point in found if point is not None]
    # A convolutional network may look at patches as tokens inside of a block; a transformer has one map, its patches,
    # whatever convolutions made them: where tokens come last, they are what it ends in.
    whole = [(number, point) for number, point in maps if point.layout != "tokens"]
    maps = whole if len(_levels(whole)) > 1 and maps[-1][1].layout != "tokens" else maps
    levels = _levels(maps)
    following: dict[tuple[int, int], tuple[int, int]] = dict(pairwise(levels))
    points = []
    for level in levels:
        candidates = [(number, point) for number, point in maps if (point.height, point.width) == level]
        below = following.get(level)
        falls = [call.path for call in calls if not call.chain and call.before[2:] == level and call.after[2:] == below]
        points.append(_last_outside(candidates, falls))
    return tuple(points)


def _levels(maps: Sequence[tuple[int, StagePoint]]) -> list[tuple[int, int]]:
    """The resolutions of some maps, as they fall."""
    levels: list[tuple[int, int]] = []
    for _, point in maps:
        size = (point.height, point.width)
        if not levels or size[0] * size[1] < levels[-1][0] * levels[-1][1]:
            levels.append(size)
    return levels


def _last_outside(candidates: list[tuple[int, StagePoint]], falls: list[str]) -> StagePoint:
    """The last candidate that is not part of a block that lowers the resolution.

    A bottleneck widens at the old resolution before it strides; that map is no stage's end. Where a module around
    several stages lowers the resolution too, it is not counted: the outermost ones are left out until a map remains.
    """
    remaining = sorted(falls, key=lambda path: path.count("."))
    while True:
        outside = [p for _, p in candidates if not any(p.path.startswith(f"{path}.") for path in remaining)]
        if outside:
            return outside[-1]
        remaining.pop(0)
