"""Proof that an exported graph computes what the module computes, and where it stops doing so when it does not.

Layers of the module and values of the graph are matched by what they compute, not by name: exporters fuse, rename and
drop, so that no naming survives, but a layer that was exported faithfully leaves its values somewhere in the graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edgekd.errors import BuildFailed
from edgekd.nn.mode import evaluating
from edgekd.nn.onnx import INPUT_NAME
from edgekd.runtimes.compare import Comparison, Tolerance, batches, compare_logits, logits_of
from edgekd.runtimes.onnx_file import graph_from_file
from edgekd.runtimes.onnxruntime import RUNTIME, values_in_graph
from edgekd.runtimes.session import FloatArray

DIAGNOSED_IMAGES = 2
"""Enough to tell layers apart; all inner values are in memory at once."""


def require_parity(module: nn.Module, path: Path, images: FloatArray, tolerance: Tolerance) -> Comparison:
    """How near ONNX Runtime's logits are to the module's, on images.

    Args:
        module: On the CPU.
        path: The exported graph, with a dynamic batch; one image is also run alone.
        images: (N, C, H, W) float32, N >= 1.
        tolerance: What is accepted.

    Raises:
        BuildFailed: They differ by more; the message names the first layer that does.
    """
    expected = module_logits(module, images)
    with RUNTIME.open(path) as session:
        parts = [logits_of(session, part) for part in (images[:1], images[1:]) if len(part)]
    found = np.concatenate(parts)
    if found.shape != expected.shape:
        raise BuildFailed(f"The exported graph gives logits of shape {found.shape}, the module {expected.shape}.")
    if not np.isfinite(found).all():
        raise BuildFailed(f"The exported graph gives NaN or infinite logits; {_where(module, path, images, tolerance)}")
    comparison = compare_logits(expected, found)
    if not tolerance.holds(expected, found):
        raise BuildFailed(
            f"The exported graph differs from the module by up to {comparison.max_abs:.3g} on {comparison.n} images, "
            f"where the logits have a spread of {comparison.spread:.3g}; {_where(module, path, images, tolerance)}",
            hint="if the difference is acceptable, raise --atol or --rtol",
        )
    return comparison


def module_logits(module: nn.Module, images: FloatArray) -> FloatArray:
    """(N, K) float32: the module's answers in evaluation mode."""
    with evaluating(module), torch.inference_mode():
        return np.concatenate([module(torch.from_numpy(part)).numpy() for part in batches(images, 32)])


@dataclass(frozen=True)
class Layer:
    """One execution of a leaf module.

    Attributes:
        name: Its path in the module.
        output: A copy of what it gave.
        readers: Positions, in the list of layers, of those that take this output as it is.
    """

    name: str
    output: FloatArray
    readers: tuple[int, ...]


def layers_of(module: nn.Module, images: FloatArray) -> list[Layer]:
    """Every leaf module that ran on the images, in the order of execution; one that ran twice is there twice."""
    runs: list[tuple[str, tuple[object, ...], Tensor, FloatArray]] = []

    def keep(name: str, inputs: tuple[object, ...], output: object) -> None:
        if isinstance(output, Tensor) and output.dtype is torch.float32:
            # The values are copied, because the next layer may work in place; the tensor is held, because its identity
            # tells who reads it.
            runs.append((name, inputs, output, output.numpy().copy()))

    leaves = [(name, part) for name, part in module.named_modules() if not list(part.children())]
    handles = [
        part.register_forward_hook(lambda _module, inputs, output, name=name: keep(name, inputs, output))
        for name, part in leaves
    ]
    try:
        module_logits(module, images)
    finally:
        for handle in handles:
            handle.remove()
    return [
        Layer(name, values, tuple(at for at in range(place + 1, len(runs)) if any(x is tensor for x in runs[at][1])))
        for place, (name, _, tensor, values) in enumerate(runs)
    ]


def _where(module: nn.Module, path: Path, images: FloatArray, tolerance: Tolerance) -> str:
    """The end of a sentence: at which layer the graph leaves the module."""
    few = np.ascontiguousarray(images[:DIAGNOSED_IMAGES])
    layers = layers_of(module, few)
    values = list(values_in_graph(graph_from_file(path), {INPUT_NAME: few}).values())
    found = [
        any(value.size == layer.output.size and tolerance.holds(layer.output, value) for value in values)
        for layer in layers
    ]
    for place, layer in enumerate(layers):
        # A layer can be missing because it was fused into one that reads it (a convolution into its BatchNorm); then
        # the values of that one are there.
        if not found[place] and not any(found[reader] for reader in layer.readers):
            before = [earlier.name for earlier, agrees in zip(layers[:place], found, strict=False) if agrees]
            agreed = f"the last that agrees is {before[-1]!r}" if before else "none before it agrees"
            return f"the first layer that differs is {layer.name!r}, {agreed}."
    return "every layer agrees when the graph runs without optimisations, so the difference arises after the last."
