"""Which blocks of a trained network can be left out: those that only add to what they are given.

Removing one residual block leaves the other paths through the network as they are (Veit et al. 2016, arXiv
1605.06431). Such blocks are found by what they compute, not by their class: with its layers silenced, a block that
adds returns its input.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from edgekd.nn.mode import evaluating

_TOLERANCE = 1e-3
"""Of a silenced block's output, relative to the largest input; a silenced BatchNorm divides by sqrt(1 + eps)."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Blocks that add to one stream of values of one shape, in the order in which they run.

    Attributes:
        parent: Path of the module that holds them.
        blocks: Their paths; all map one shape to itself.
        changes: By how much each changes its input, `||f(x) - x|| / ||x||`, mean over the images.
        alone: Whether the parent holds no other layers with weights, so that one block has to stay.
    """

    parent: str
    blocks: tuple[str, ...]
    changes: tuple[float, ...]
    alone: bool

    def dropped(self, count: int, *, measured: bool) -> tuple[str, ...]:
        """The `count` blocks to leave out, in the order of the network.

        Args:
            count: At most `most`.
            measured: Those that change least go first (in the spirit of ShortGPT, Men et al. 2024, arXiv 2403.03853);
                otherwise the later ones do: the first block after a change of resolution matters most (Veit et al.).
        """
        places = range(len(self.blocks))
        order = sorted(places, key=lambda place: self.changes[place] if measured else -place)
        return tuple(self.blocks[place] for place in sorted(order[:count]))

    @property
    def most(self) -> int:
        """How many can be left out."""
        return len(self.blocks) - self.alone


@dataclass(kw_only=True)
class _Call:
    """A module that ran; `times` tells whether its input and output are the only ones."""

    order: int
    image: Tensor
    times: int = 1
    change: float | None = None


def skippable_runs(module: nn.Module, images: Tensor) -> tuple[Run, ...]:
    """The network's residual blocks, in runs; runs in the order of the network.

    Blocks inside others come before those around them: the block of a stage is found, not the stage.

    Args:
        module: Left as it was.
        images: (N, C, H, W), what it takes.
    """
    with evaluating(module), torch.no_grad():
        calls = _calls(module, images)
        adding = {path for path, call in calls.items() if _only_adds(module.get_submodule(path), call)}
    inner = [path for path in calls if path in adding and not any(other.startswith(f"{path}.") for other in adding)]
    found: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for path in sorted(inner, key=lambda path: calls[path].order):
        found.setdefault((path.rpartition(".")[0], tuple(calls[path].image.shape[1:])), []).append(path)
    return tuple(_run(module, parent, blocks, calls) for (parent, _), blocks in found.items())


def _run(module: nn.Module, parent: str, blocks: list[str], calls: dict[str, _Call]) -> Run:
    weighted = [
        f"{parent}.{name}".strip(".")
        for name, child in module.get_submodule(parent).named_children()
        if any(parameter.ndim > 1 for parameter in child.parameters())
    ]
    changes = [calls[path].change for path in blocks]
    return Run(
        parent=parent,
        blocks=tuple(blocks),
        changes=tuple(0.0 if change is None else change for change in changes),
        alone=set(weighted) == set(blocks),
    )


def _calls(module: nn.Module, images: Tensor) -> dict[str, _Call]:
    """Input and change of every composite module with weights that maps one shape to itself and runs once."""
    calls: dict[str, _Call] = {}
    handles = []
    for path, part in module.named_modules():
        composite = path and next(part.children(), None) is not None
        if composite and any(parameter.ndim > 1 for parameter in part.parameters()):
            handles.append(part.register_forward_pre_hook(_entering(path, calls)))
            handles.append(part.register_forward_hook(_leaving(path, calls)))
    try:
        module(images)
    finally:
        for handle in handles:
            handle.remove()
    return {path: call for path, call in calls.items() if call.times == 1 and call.change is not None}


def _entering(path: str, calls: dict[str, _Call]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def enter(_: nn.Module, args: tuple[Any, ...]) -> None:
        if path in calls:
            calls[path].times += 1
        elif args and isinstance(args[0], Tensor):
            # A copy, because the block may work in place.
            calls[path] = _Call(order=len(calls), image=args[0].clone())

    return enter


def _leaving(path: str, calls: dict[str, _Call]) -> Callable[[nn.Module, Any, Any], None]:
    def leave(_: nn.Module, args: Any, output: Any) -> None:
        call = calls.get(path)
        if call is not None and isinstance(output, Tensor) and output.shape == call.image.shape:
            before, after = call.image.flatten(1), output.flatten(1)
            relative = (after - before).norm(dim=1) / before.norm(dim=1).clamp_min(1e-12)
            call.change = float(relative.mean())

    return leave


def _only_adds(part: nn.Module, call: _Call) -> bool:
    """Whether the block gives its input back once its layers are silent; it has to take that input alone."""
    largest = call.image.abs().max()
    if largest == 0:
        return False
    silent = copy.deepcopy(part)
    _silence_(silent)
    try:
        output = silent(call.image.clone())
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False
    if not isinstance(output, Tensor) or output.shape != call.image.shape:
        return False
    return bool((output - call.image).abs().max() <= _TOLERANCE * largest)


def _silence_(module: nn.Module) -> None:
    """Layers that mix values give zero; a BatchNorm passes on what it gets."""
    for part in module.modules():
        if isinstance(part, _NormBase):
            if part.running_mean is not None and part.running_var is not None:
                part.running_mean.zero_()
                part.running_var.fill_(1)
            if part.affine:
                part.weight.fill_(1)
                part.bias.zero_()
            continue
        for name, parameter in part.named_parameters(recurse=False):
            if parameter.ndim > 1 or "bias" in name:
                parameter.zero_()
