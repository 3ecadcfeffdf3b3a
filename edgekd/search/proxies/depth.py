"""Depth: how many layers with weights an image passes on its longest way through the network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from edgekd.nn.mode import evaluating
from edgekd.nn.shapes import example_images
from edgekd.search.proxy import Batch, Proxy, ScoreStudent, Unscorable

_PRODUCT = re.compile(r"(Convolution|mm|Mm|Linear)\w*Backward")
"""Names of autograd's nodes for convolutions and matrix products."""


class Depth(Proxy):
    """`score = layers with weights on the longest path from the input to the logits`.

    A layer is a convolution or matrix product one of whose factors is made of weights alone; products of two
    activations, as in attention, do not count.
    """

    uses_weights: ClassVar[bool] = False
    formula: ClassVar[str] = "convolutions and matrix products with weights on the longest path from input to logits"
    source: ClassVar[str] = "counting"

    def bind(self, teacher: nn.Module, batch: Batch) -> ScoreStudent:
        return lambda student: float(count_depth(student, batch.input_shape))


def count_depth(module: nn.Module, input_shape: tuple[int, int, int]) -> int:
    """Layers with trainable weights on the longest path, from the graph of one image's forward pass.

    Args:
        module: Left as it was.
        input_shape: (C, H, W).

    Raises:
        Unscorable: No path leads from the input to the logits.
    """
    image = example_images(module, input_shape).requires_grad_()
    with evaluating(module), torch.enable_grad():
        logits = module(image)
    depth = _longest(logits.grad_fn, image)
    if depth is None:
        raise Unscorable("No path leads from its input to its output.")
    return depth


def _longest(output: Any, image: Tensor) -> int | None:
    """The longest chain that ends at autograd's node `output`; None when it does not start at the image."""
    depths: dict[Any, int | None] = {}
    weighted: dict[Any, bool] = {}
    """Whether a node that does not depend on the image depends on a weight of two or more axes."""
    for node, before in _inputs_first(output):
        variable = getattr(node, "variable", None)
        reached = [depth for depth in (depths[other] for other in before) if depth is not None]
        by_weights = any(weighted[other] for other in before)
        is_layer = by_weights and _PRODUCT.search(node.name()) is not None
        depths[node] = 0 if variable is image else max(reached) + is_layer if reached else None
        is_weight = isinstance(variable, Tensor) and variable is not image and variable.ndim > 1
        weighted[node] = is_weight or (by_weights and not reached)
    return depths.get(output)


def _inputs_first(output: Any) -> Iterator[tuple[Any, list[Any]]]:
    """Each node of the graph once, with the nodes that its inputs come from, all of which come before it."""
    done: set[Any] = set()
    stack = [] if output is None else [output]
    while stack:
        node = stack[-1]
        before = [other for other, _ in node.next_functions if other is not None]
        waiting = [other for other in before if other not in done]
        if waiting:
            stack.extend(waiting)
            continue
        stack.pop()
        if node not in done:
            done.add(node)
            yield node, before
