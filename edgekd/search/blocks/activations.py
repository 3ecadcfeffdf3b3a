"""What a teacher's blocks receive and give, kept in memory for one stage of the network at a time.

A replacement is trained on these tensors alone, so a stage's blocks run once for all of its replacements.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgekd.search.blocks.chain import Block, Shape, exchanged, stages

CHUNK = 256
"""Images per forward pass."""
_BYTES = 4


def bytes_per_image(blocks: Sequence[Block]) -> int:
    """Memory for one image: the inputs of all stages, and everything between the blocks of the largest one."""
    cut = stages(blocks)
    inputs = sum(_size(blocks[stage.start].input) for stage in cut)
    return inputs + max(sum(_size(blocks[index].output) for index in stage) for stage in cut)


def _size(shape: Shape) -> int:
    channels, height, width = shape
    return _BYTES * channels * height * width


@torch.no_grad()
def stage_inputs(teacher: nn.Module, blocks: Sequence[Block], images: Tensor) -> list[Tensor]:
    """By stage, what its first block receives, (N, C, H, W) float32, in evaluation mode.

    Args:
        teacher: In evaluation mode.
        blocks: Of the teacher.
        images: (N, C, H, W), preprocessed.
    """
    firsts = [blocks[stage.start] for stage in stages(blocks)]
    kept = [_empty(len(images), block.input, images) for block in firsts]
    at = 0

    handles = []
    for block, into in zip(firsts, kept, strict=True):

        def keep(_: nn.Module, args: tuple[Tensor, ...], into: Tensor = into) -> None:
            into[at : at + len(args[0])] = args[0]

        handles.append(teacher.get_submodule(block.path).register_forward_pre_hook(keep))
    try:
        for chunk in torch.split(images, CHUNK):
            teacher(chunk)
            at += len(chunk)
    finally:
        for handle in handles:
            handle.remove()
    return kept


@torch.no_grad()
def boundaries(teacher: nn.Module, blocks: Sequence[Block], stage: range, first: Tensor) -> list[Tensor]:
    """What lies between the blocks of a stage: the input of each, and the output of the last.

    Args:
        teacher: In evaluation mode.
        blocks: Of the teacher.
        stage: Positions of blocks that are linked.
        first: (N, C, H, W), the input of the first one.
    """
    found = [first]
    for index in stage:
        part = teacher.get_submodule(blocks[index].path)
        after = _empty(len(first), blocks[index].output, first)
        for start in range(0, len(first), CHUNK):
            # A copy, for the block may work in place.
            after[start : start + CHUNK] = part(found[-1][start : start + CHUNK].clone())
        found.append(after)
    return found


@torch.no_grad()
def logits_with(
    teacher: nn.Module, blocks: Sequence[Block], chain: range, last: int, outputs: Tensor, images: Tensor
) -> Tensor:
    """(N, K): the teacher's logits when its block at position `last` gives `outputs`.

    What comes before that block in its chain does not run.

    Args:
        teacher: In evaluation mode.
        blocks: Of the teacher.
        chain: Positions of the linked blocks among which `last` is.
        last: Position of a block.
        outputs: (N, C', H', W').
        images: (N, C, H, W), for what comes before the chain.
    """
    given = _Given()
    parts: dict[str, nn.Module] = {blocks[index].path: nn.Identity() for index in range(chain.start, last + 1)}
    parts[blocks[chain.start].path] = given
    found = []
    with exchanged(teacher, parts):
        for start in range(0, len(images), CHUNK):
            given.value = outputs[start : start + CHUNK].clone()
            found.append(teacher(images[start : start + CHUNK]))
    return torch.cat(found)


class _Given(nn.Module):
    """Gives a tensor, whatever it receives."""

    value: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return self.value


def _empty(count: int, shape: Shape, like: Tensor) -> Tensor:
    """Room for feature maps in the fast memory format."""
    return torch.empty((count, *shape), device=like.device, memory_format=torch.channels_last)
