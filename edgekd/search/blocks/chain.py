"""Finds the blocks of a trained network that can be replaced, by running it once; no names and no list of layer types.

A block is a module that maps one feature map to one feature map and is more than a container. An `nn.Sequential` of
blocks, a stage whose blocks lead from its very input to its very output, and a backbone of many blocks that nothing
bypasses are containers: they are looked into instead.
Blocks are linked where the output of one goes into the next and nowhere else, which is not assumed but checked: the
network must compute the same bits when the whole run stands in the place of its first block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgekd.core.recipe import Edit
from edgekd.core.schema import Schema
from edgekd.errors import UserError
from edgekd.nn.edits import split_edit
from edgekd.nn.mode import evaluating
from edgekd.nn.shapes import example_images
from edgekd.nn.split import places_to_cut, split_

_MANY = 4
"""A module of so many blocks is a backbone, not a block, unless something bypasses them."""
_UNFIT = (RuntimeError, AttributeError, TypeError, ValueError, IndexError)
"""What a network may raise when a module in it is exchanged for one of another class."""
Shape = tuple[int, int, int]


class Block(Schema):
    """One replaceable module.

    Attributes:
        path: In the network.
        input: (C, H, W).
        output: (C', H', W').
        relu: Whether no output was negative, so that a replacement should end in a ReLU.
        depthwise: Whether it holds a depthwise convolution.
        linked: Whether its input is the output of the block before it, which nothing else reads.
    """

    path: str
    input: Shape
    output: Shape
    relu: bool
    depthwise: bool
    linked: bool

    @property
    def keeps_shape(self) -> bool:
        """Whether an identity could stand in its place."""
        return self.input == self.output


@dataclass(frozen=True)
class _Call:
    path: str
    module: nn.Module
    input: Tensor
    output: Tensor


def find_blocks(module: nn.Module, input_shape: Shape) -> tuple[Block, ...]:
    """The replaceable blocks, in the order in which they run.

    Args:
        module: Images to logits; left as it was.
        input_shape: (C, H, W).

    Raises:
        UserError: There are none.
    """
    zeros = example_images(module, input_shape, batch=2)
    images = torch.randn(zeros.shape, generator=torch.Generator().manual_seed(0)).to(zeros)
    with evaluating(module), torch.no_grad():
        expected = module(images)
        calls = _calls(module, images)
        found = _Finder(module, images, calls).blocks(module, "")
        # Only blocks that can be exchanged at all, alone.
        found = [call for call in found if _same_as_one(module, images, [call.path], expected)]
        linked = _links(module, images, found, expected)
    if not found:
        raise UserError(
            f"This {type(module).__name__} has no block that could be replaced: no module in it maps one feature map "
            "(N, C, H, W) to one feature map.",
            hint="leave `blocks` out of --students",
        )
    return tuple(_block(call, linked=link) for call, link in zip(found, linked, strict=True))


def split_edits_(module: nn.Module) -> tuple[Edit, ...]:
    """Splits a rebuilt program in place into parts that can be blocks; returns the edits that do the same.

    Other modules have parts of their own, and are left as they are.
    """
    cuts = places_to_cut(module) if isinstance(module, fx.GraphModule) else ()
    if not cuts:
        return ()
    split_(module, cuts)
    return (split_edit(cuts),)


def chains(blocks: Sequence[Block]) -> list[range]:
    """Positions of the blocks, cut where a block is not linked with the one before it."""
    starts = [index for index, block in enumerate(blocks) if index == 0 or not block.linked]
    return [range(first, end) for first, end in pairwise([*starts, len(blocks)])]


def stages(blocks: Sequence[Block]) -> list[range]:
    """Positions of the blocks, cut where links end and in front of each block that changes the shape."""
    starts = [index for index, block in enumerate(blocks) if index == 0 or not block.linked or not block.keeps_shape]
    return [range(first, end) for first, end in pairwise([*starts, len(blocks)])]


@contextmanager
def exchanged(module: nn.Module, parts: dict[str, nn.Module]) -> Iterator[None]:
    """Inside of the block other submodules stand at the given paths; afterwards those that were there before."""
    before = {path: module.get_submodule(path) for path in parts}
    try:
        for path, part in parts.items():
            _put(module, path, part)
        yield
    finally:
        for path, part in before.items():
            _put(module, path, part)


def _put(module: nn.Module, path: str, part: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, part)


def _calls(module: nn.Module, images: Tensor) -> dict[str, _Call]:
    """Modules that were called once, with one feature map, and gave one feature map, in the order of their starts."""
    started: dict[str, list[tuple[nn.Module, Any, Any]]] = {}
    finished: dict[str, Any] = {}
    handles = []
    for path, part in module.named_modules():

        def start(part: nn.Module, args: Any, kwargs: Any, path: str = path) -> None:
            started.setdefault(path, []).append((part, args, kwargs))

        def finish(_: nn.Module, args: Any, output: Any, path: str = path) -> None:
            finished[path] = output

        handles.append(part.register_forward_pre_hook(start, with_kwargs=True))
        handles.append(part.register_forward_hook(finish))
    try:
        module(images)
    finally:
        for handle in handles:
            handle.remove()
    return {
        path: _Call(path, part, args[0], finished[path])
        for path, ((part, args, kwargs), *again) in started.items()
        if path and not again and not kwargs and len(args) == 1 and _is_map(args[0]) and _is_map(finished.get(path))
    }


def _is_map(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim == 4


class _Finder:
    """Tells blocks from containers of blocks."""

    def __init__(self, module: nn.Module, images: Tensor, calls: dict[str, _Call]) -> None:
        self._module = module
        self._images = images
        self._calls = calls
        self._order = {path: index for index, path in enumerate(calls)}

    def blocks(self, part: nn.Module, path: str) -> list[_Call]:
        """The blocks among a module's children, in the order in which they run; what is none is looked into."""
        found: list[_Call] = []
        for name, child in part.named_children():
            inner_path = f"{path}.{name}" if path else name
            inner = self.blocks(child, inner_path)
            call = self._calls.get(inner_path)
            if call is not None and _has_weights(child) and not self._contains(call, inner):
                found.append(call)
            else:
                found += inner
        return sorted(found, key=lambda call: self._order[call.path])

    def _contains(self, call: _Call, inner: Sequence[_Call]) -> bool:
        if isinstance(call.module, nn.Sequential):
            return bool(inner)
        if len(inner) > 1 and inner[0].input is call.input and inner[-1].output is call.output:
            return all(before.output is after.input for before, after in pairwise(inner))
        return len(inner) >= _MANY and not self._bypassed(call, inner[-1])

    def _bypassed(self, call: _Call, last: _Call) -> bool:
        """Whether a module's outputs still differ between images when its last block gives a constant."""
        heard: list[Tensor] = []
        handle = call.module.register_forward_hook(lambda _, args, output: heard.append(output))
        try:
            with exchanged(self._module, {last.path: _Constant(torch.zeros_like(last.output))}):
                self._module(self._images)
        except _UNFIT:
            return True
        finally:
            handle.remove()
        return not torch.equal(heard[0][0], heard[0][1])


class _Constant(nn.Module):
    """Gives the same whatever it is given."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self._value = value

    def forward(self, x: Tensor) -> Tensor:
        return self._value


def _has_weights(child: nn.Module) -> bool:
    """Whether a module is more than one layer, and more than glue."""
    return next(child.children(), None) is not None and any(p.ndim > 1 for p in child.parameters())


def _links(module: nn.Module, images: Tensor, found: Sequence[_Call], expected: Tensor) -> list[bool]:
    """For each block, whether it is linked with the one before it."""
    linked = [False] + [before.output is after.input for before, after in pairwise(found)]
    linked = linked[: len(found)]
    starts = [index for index, link in enumerate(linked) if not link]
    for first, end in pairwise([*starts, len(found)]):
        paths = [call.path for call in found[first:end]]
        # One pass for a whole run; only where that fails is each link checked alone.
        if not _same_as_one(module, images, paths, expected):
            for index in range(first + 1, end):
                pair = [found[index - 1].path, found[index].path]
                linked[index] = _same_as_one(module, images, pair, expected)
    return linked


def _same_as_one(module: nn.Module, images: Tensor, paths: Sequence[str], expected: Tensor) -> bool:
    """Whether nothing changes when the first of several blocks does the work of all, and the others do nothing."""
    run = nn.Sequential(*(module.get_submodule(path) for path in paths))
    parts: dict[str, nn.Module] = {path: nn.Identity() for path in paths[1:]} | {paths[0]: run}
    try:
        with exchanged(module, parts):
            return torch.equal(module(images), expected)
    except _UNFIT:
        return False


def _block(call: _Call, *, linked: bool) -> Block:
    convolutions = [part for part in call.module.modules() if isinstance(part, nn.Conv2d)]
    return Block(
        path=call.path,
        input=_shape(call.input),
        output=_shape(call.output),
        relu=bool((call.output >= 0).all()),
        depthwise=any(part.groups == part.in_channels > 1 for part in convolutions),
        linked=linked,
    )


def _shape(value: Tensor) -> Shape:
    channels, height, width = value.shape[1:]
    return channels, height, width
