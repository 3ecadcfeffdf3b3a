"""What a classifier computes on its way to the logits: embedding, feature maps, class maps, and its own last layer.

The places are found by running the network once, not by the names of layers, so they exist for models of any library.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

from edgekd.core.schema import Schema
from edgekd.errors import UserError
from edgekd.nn.mode import evaluating
from edgekd.nn.shapes import example_images
from edgekd.nn.stages import StagePoint, find_stage_points, proportional

EMBEDDING = "embedding"
FEATURE_MAP = "feature_map"
CLASS_MAPS = "class_maps"
STAGES = "stages"
CLASSIFIER = "classifier"
KNOWN = (EMBEDDING, FEATURE_MAP, CLASS_MAPS, STAGES, CLASSIFIER)


class TapPoints(Schema):
    """Where to listen, as module paths.

    Attributes:
        classifier: The last layer that gives K values: a Linear or a 1x1 convolution. Its input is the embedding.
        feature_map: The last module in front of it whose output is (N, C, H, W) with more than one pixel; None where
            tokens or pixels of another layout come last, as in vision transformers.
        map_call: Which call of that module in one pass, from 0: a shared ReLU is called at many depths.
        reads_map: Whether each input of the classifier is one channel of that map, pooled and perhaps normalised.
    """

    classifier: str
    feature_map: str | None
    map_call: int = 0
    reads_map: bool = False


class TapOutput(NamedTuple):
    """One forward pass.

    Attributes:
        logits: (N, K), unnormalised.
        embedding: (N, D), the classifier's input; averaged over pixels or tokens where it has them. None if unasked.
        feature_map: (N, C, H, W), None if unasked. Where tokens or pixels of another layout come last, it is the last
            of the stages: the patches as a grid, without class tokens.
        class_maps: (N, K, H, W): the classifier's weights applied to each pixel of the feature map, without its bias
            (class activation maps, Zhou et al. 2016). None if unasked.
        stages: The last map of each resolution, (N, C_l, H_l, W_l). None if unasked.
        classifier: Weight (K, D) and bias (K,) or None of the last layer, the parameters themselves. None if unasked.
    """

    logits: Tensor
    embedding: Tensor | None
    feature_map: Tensor | None
    class_maps: Tensor | None = None
    stages: tuple[Tensor, ...] | None = None
    classifier: tuple[Tensor, Tensor | None] | None = None


class Taps(nn.Module):
    """A classifier that returns what was asked for beside its logits; it trains and distributes like any module.

    Nothing stays behind in the wrapped `module`: hooks live for one call.

    Args:
        module: Images (N, C, H, W) to logits (N, K); `taps.module` is the same object.
        want: Any of `KNOWN`.
        input_shape: (C, H, W) of one image, for the pass that finds the places; none runs when nothing is wanted.

    Attributes:
        points: Where embedding and feature map are; None where neither is wanted.
        grid: Where the feature map is read of a network whose `points` have none; None for all others.
        stages: Where these are; empty where they are not wanted.

    Raises:
        UserError: Something is wanted that the network does not have.
    """

    def __init__(self, module: nn.Module, want: Collection[str], input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.module = module
        self.want = frozenset(str(name) for name in want)
        unknown = self.want - frozenset(KNOWN)
        if unknown:
            raise UserError(f"A tap is one of {', '.join(KNOWN)}, not {sorted(unknown)}.")
        self.points = find_tap_points(module, input_shape) if self.want - {STAGES} else None
        self.grid: StagePoint | None = None
        if self.points is not None:
            if FEATURE_MAP in self.want and self.points.feature_map is None:
                self.grid = next(reversed(find_stage_points(module, input_shape, self.points.classifier)), None)
            self._check(self.points)
        self.stages: tuple[StagePoint, ...] = ()
        if STAGES in self.want:
            self.stages = find_stage_points(module, input_shape, _classifier_path(module, input_shape))
            self._check_stages()

    def forward(self, images: Tensor) -> TapOutput:
        heard: dict[str, Tensor] = {}
        with self._listening(heard):
            logits = self.module(images)
        feature_map = heard.get(FEATURE_MAP)
        if self.grid is not None and feature_map is not None:
            feature_map = self.grid.read(feature_map)
        return TapOutput(
            logits,
            heard.get(EMBEDDING),
            feature_map if FEATURE_MAP in self.want else None,
            self._class_maps(feature_map) if feature_map is not None and CLASS_MAPS in self.want else None,
            tuple(point.read(heard[_key(point)]) for point in self.stages) if self.stages else None,
            self._classifier() if CLASSIFIER in self.want else None,
        )

    def _check(self, points: TapPoints) -> None:
        name = type(self.module).__name__
        if FEATURE_MAP in self.want and points.feature_map is None and self.grid is None:
            raise UserError(
                f"No layer of this {name} gives a feature map (N, C, H, W), or tokens that form a grid.",
                hint="choose an objective that needs logits or embeddings only: edgekd objectives",
            )
        if CLASS_MAPS in self.want and points.feature_map is None:
            raise UserError(
                f"The classifier {points.classifier!r} of this {name} reads no feature map (N, C, H, W), so its "
                "classes have no activation maps.",
                hint="choose an objective that needs no class maps: edgekd objectives",
            )
        if CLASS_MAPS in self.want and not points.reads_map:
            raise UserError(
                f"The classifier {points.classifier!r} of this {name} does not read its last feature map "
                f"({points.feature_map!r}) channel by channel, so its classes have no activation maps.",
                hint="choose an objective that needs no class maps: edgekd objectives",
            )

    def _check_stages(self) -> None:
        if not self.stages:
            raise UserError(
                f"No layer of this {type(self.module).__name__} gives a feature map, or tokens that form a grid, so it "
                "has no stages to compare.",
                hint="choose an objective that needs logits or embeddings only: edgekd objectives",
            )

    def _classifier(self) -> tuple[Tensor, Tensor | None]:
        assert self.points is not None
        layer: Any = self.module.get_submodule(self.points.classifier)
        return layer.weight.flatten(1), layer.bias

    def _class_maps(self, feature_map: Tensor) -> Tensor:
        assert self.points is not None
        weight: Any = self.module.get_submodule(self.points.classifier).weight
        return torch.einsum("kc,nchw->nkhw", weight.flatten(1), feature_map)

    @contextmanager
    def _listening(self, heard: dict[str, Tensor]) -> Iterator[None]:
        handles = []
        if self.points is not None and EMBEDDING in self.want:

            def hear_input(part: nn.Module, args: tuple[Tensor, ...]) -> None:
                heard[EMBEDDING] = _embedding(args[0], channels_last=isinstance(part, nn.Linear))

            classifier = self.module.get_submodule(self.points.classifier)
            handles.append(classifier.register_forward_pre_hook(hear_input))
        maps = self.want & {FEATURE_MAP, CLASS_MAPS}
        if self.points is not None and self.points.feature_map is not None and maps:
            handles.append(self._hear(self.points.feature_map, self.points.map_call, FEATURE_MAP, heard))
        elif self.grid is not None:
            handles.append(self._hear(self.grid.path, self.grid.call, FEATURE_MAP, heard))
        handles += [self._hear(point.path, point.call, _key(point), heard) for point in self.stages]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hear(self, path: str, call: int, name: str, heard: dict[str, Tensor]) -> RemovableHandle:
        """Keeps the output of one call of the module, counted from 0 in this pass."""
        numbers = count()

        def hear(_: nn.Module, args: object, output: Tensor) -> None:
            if next(numbers) == call:
                heard[name] = output

        return self.module.get_submodule(path).register_forward_hook(hear)


def _key(point: StagePoint) -> str:
    return f"{STAGES}.{point.path}.{point.call}"


def _classifier_path(module: nn.Module, input_shape: tuple[int, int, int]) -> str | None:
    """Where the classifier is; None for a network whose logits come of no layer, all of which is looked at."""
    try:
        return find_tap_points(module, input_shape).classifier
    except UserError:
        return None


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
    before = trace[: heads[-1]]
    place = _last_map(before, classifier.width, input_shape)
    if place is None:
        return TapPoints(classifier=classifier.path, feature_map=None)
    mixed = any(call.mixes for call in before[place + 1 :])
    found = before[place]
    return TapPoints(
        classifier=classifier.path,
        feature_map=found.path,
        map_call=found.number,
        reads_map=found.shape[1] == classifier.width and not mixed,
    )


@dataclass(frozen=True)
class _Call:
    """One finished call of a module; calls are listed in the order in which they finish.

    Attributes:
        path: Of the module.
        number: Which call of that module it is, from 0.
        heads: Output values of a Linear or 1x1 convolution, else None.
        width: Its input values.
        shape: Of the output, empty when it is no tensor.
        mixes: Whether the module is a layer that mixes channels.
    """

    path: str
    number: int
    heads: int | None
    width: int | None
    shape: tuple[int, ...]
    mixes: bool


def _recorder(path: str, trace: list[_Call]) -> Callable[[nn.Module, Any, Any], None]:
    numbers = count()

    def record(part: nn.Module, args: object, output: object) -> None:
        heads = width = None
        if isinstance(part, nn.Linear) or (isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1)):
            heads, width = part.weight.shape[:2]
        shape = tuple(output.shape) if isinstance(output, Tensor) else ()
        trace.append(_Call(path, next(numbers), heads, width, shape, isinstance(part, nn.Linear | _ConvNd)))

    return record


def _last_map(trace: list[_Call], width: int | None, input_shape: tuple[int, int, int]) -> int | None:
    """Number of the last call that gives several positions of an image, when they are the pixels of (N, C, H, W).

    They are tokens in (N, T, D), and pixels of another layout in (N, H, W, D): by the proportions of the image, or by D
    being the width of the embedding. What does not come image by image, such as the windows of an attention, is no map.
    """
    for place, call in reversed(list(enumerate(trace))):
        if call.shape[:1] != (1,):
            continue
        if len(call.shape) == 3 and call.shape[1] > 1:
            return None
        if len(call.shape) == 4 and 1 not in (call.shape[1] * call.shape[2], call.shape[2] * call.shape[3]):
            first, last = proportional(call.shape[2:], input_shape), proportional(call.shape[1:3], input_shape)
            return None if (last and not first) or call.shape[3] == width != call.shape[1] else place
    return None


def _embedding(x: Tensor, *, channels_last: bool) -> Tensor:
    """(N, D) from the input of a Linear, (N, ..., D), or of a 1x1 convolution, (N, D, H, W)."""
    if x.ndim == 2:
        return x
    return x.flatten(1, -2).mean(1) if channels_last else x.flatten(2).mean(2)
