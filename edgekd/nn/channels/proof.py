"""Proves that a set of groups can be cut, by computation: the cut network must equal the masked one.

Masking sets to zero what later layers read of the removed channels, in a network of unchanged shape. If a group names
wrong channels, forgets a layer, or the network pads, slices or reshapes by fixed numbers, the cut network fails to run
or gives other outputs. The test runs in float64, on random weights, so that dead channels of the trained ones cannot
hide a mistake.
"""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from edgekd.errors import BuildFailed
from edgekd.nn.channels.apply import (
    Removal,
    channels_along,
    keep_channels_,
    mixes_channels,
    part_at,
    remove_channels_,
)
from edgekd.nn.channels.groups import ChannelGroup, Member

SMALL_SIDE_PX = 128
"""Images at least this large are shrunk for the proof."""
TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-3}
"""Largest difference of logits over their largest magnitude. float64 reaches 1e-13 on the networks we tried; float32
serves networks that hold float32 constants of their own."""

_FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)
"""What a cut that does not fit the network ends in."""


class Proof:
    """Checks removals on a randomised copy of a network.

    Args:
        module: The network; left as it was.
        input_shape: (C, H, W).
        seed: Of the weights, the input and the trial removals.

    Attributes:
        refuted: Reason by name of each group that `sound` left out.

    Raises:
        BuildFailed: The network does not run.
    """

    def __init__(self, module: nn.Module, input_shape: tuple[int, int, int], seed: int = 0) -> None:
        self.refuted: dict[str, str] = {}
        self._random = torch.Generator().manual_seed(seed)
        for dtype in TOLERANCES:
            self._dtype = dtype
            self._module = copy.deepcopy(module).to(dtype).eval().requires_grad_(False)
            _randomise_(self._module, self._random)
            for shape in _probe_shapes(input_shape):
                self._images = torch.randn(2, *shape, dtype=dtype, generator=self._random)
                if isinstance(self._logits(lambda module: None), Tensor):
                    return
        raise BuildFailed(
            f"Pruning needs to run the network on a batch of two random images {input_shape}, and it fails on them.",
            hint="leave the prune stage out; a program exported with a fixed batch size of 1 is one cause",
        )

    def holds(self, removals: Sequence[Removal]) -> bool:
        """Whether cutting the removals gives what masking them gives."""
        return self.why_not(removals) is None

    def why_not(self, removals: Sequence[Removal]) -> str | None:
        """Why the removals cannot be cut, as far as it is known; None when they hold."""
        found = self._logits(lambda module: remove_channels_(module, removals))
        if isinstance(found, str):
            return f"the cut network {found}"
        expected = self._logits(lambda module: _mask_(module, removals))
        if isinstance(expected, str):
            return f"the masked network {expected}"
        same = found.shape == expected.shape and bool(
            (found - expected).abs().max() <= TOLERANCES[self._dtype] * expected.abs().max()
        )
        return None if same else "the cut network computes something else than the masked one"

    def compatible(self, removals: Sequence[Removal]) -> list[Removal]:
        """Those that hold together, the rest left out one by one: what holds alone may not hold beside another.

        They are tried together and halved where a trial fails, each half beside what was taken before.
        """
        waiting, taken = [list(removals)], list[Removal]()
        while waiting:
            batch = waiting.pop()
            if self.holds([*taken, *batch]):
                taken += batch
            elif len(batch) > 1:
                middle = len(batch) // 2
                waiting += [batch[middle:], batch[:middle]]
        return taken

    def sound(
        self, groups: Sequence[ChannelGroup], on_progress: Callable[[int, int], None] | None = None
    ) -> list[ChannelGroup]:
        """The groups that hold, in their order, each tried with some of its units removed.

        Groups are tried together and halved where a trial fails, so that a network without bad groups costs one trial.

        Args:
            groups: Names differ.
            on_progress: Called with (groups decided, groups in all).
        """
        waiting, sound, decided = [list(groups)], [], 0
        while waiting:
            batch = waiting.pop()
            why_not = self.why_not([(group, self._some_units(group)) for group in batch])
            if why_not is not None and len(batch) > 1:
                middle = len(batch) // 2
                waiting += [batch[middle:], batch[:middle]]
                continue
            if why_not is None:
                sound += batch
            else:
                self.refuted[batch[0].name] = why_not
            decided += len(batch)
            if on_progress is not None:
                on_progress(decided, len(groups))
        return sound

    def _logits(self, change_: Callable[[nn.Module], None]) -> Tensor | str:
        """The logits of a changed copy, or what becomes of it instead; which layer notices first does not matter."""
        module = copy.deepcopy(self._module)
        try:
            change_(module)
        except _FAILURES:
            return "cannot be made: the trace names channels that a layer does not have"
        try:
            logits: Tensor = module(self._images)
        except _FAILURES as err:
            return f"does not run: it fails {_place(module, err)}"
        return logits

    def _some_units(self, group: ChannelGroup) -> Tensor:
        """At most half of them, a number drawn for each group: where all shrink by one ratio, code that takes one width
        for another would run."""
        most = max(1, group.units // 2)
        number = int(torch.randint(1, most + 1, (), generator=self._random))
        return torch.randperm(group.units, generator=self._random)[:number].sort().values


def _probe_shapes(input_shape: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """A quarter of the resolution first, for couplings do not depend on it; a network with positions refuses it."""
    channels, height, width = input_shape
    small = [(channels, height // 4, width // 4)] if min(height, width) >= SMALL_SIDE_PX else []
    return [*small, input_shape]


def _place(module: nn.Module, err: Exception) -> str:
    """`in a layer of type GRU`: the innermost part of the network that an error went through."""
    known = {id(part) for part in module.modules()}
    selves = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(err.__traceback__)]
    inside = [type(part).__name__ for part in selves if id(part) in known]
    return f"in a layer of type {inside[-1]}" if inside else f"with {type(err).__name__}"


def _randomise_(module: nn.Module, random: torch.Generator) -> None:
    for parameter in module.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, parameter[0].numel() ** -0.5, generator=random)
        else:
            parameter.uniform_(0.5, 1.5, generator=random)
    for part in module.modules():
        if isinstance(part, _NormBase) and part.running_mean is not None and part.running_var is not None:
            part.running_mean.normal_(0, 0.5, generator=random)
            part.running_var.uniform_(0.5, 1.5, generator=random)


def _mask_(module: nn.Module, removals: Sequence[Removal]) -> None:
    removed_of: dict[str, list[Tensor]] = {}
    for group, units in removals:
        for member in group.members:
            _mask_member_(module, member, units)
            if mixes_channels(part_at(module, member.path)):
                removed_of.setdefault(member.path, []).append(member.channels_of(units))
    for path, removed in removed_of.items():
        owner_path, _, name = path.rpartition(".")
        norm = module.get_submodule(path)
        setattr(module.get_submodule(owner_path), name, _NormOfKept(norm, torch.cat(removed)))


def _mask_member_(module: nn.Module, member: Member, units: Tensor) -> None:
    part = part_at(module, member.path)
    if member.axis == "in" and isinstance(part, nn.Conv2d | nn.Linear):
        part.weight[:, member.channels_of(units)] = 0


class _NormOfKept(nn.Module):
    """A normalisation over channels that ignores the removed ones and gives zero for them."""

    def __init__(self, norm: nn.Module, removed: Tensor) -> None:
        super().__init__()
        keep = torch.ones(channels_along(norm, "out"), dtype=torch.bool)
        keep[removed] = False
        self.keep = keep.nonzero().flatten()
        self.norm = copy.deepcopy(norm)
        keep_channels_(self.norm, "out", self.keep)
        # A LayerNorm works on the last axis; its image variants, and GroupNorm, on the second.
        self.axis = -1 if isinstance(norm, nn.LayerNorm) and "2d" not in type(norm).__name__.lower() else 1

    def forward(self, x: Tensor) -> Tensor:
        kept: Tensor = self.norm(x.index_select(self.axis, self.keep))
        return torch.zeros_like(x).index_copy(self.axis, self.keep, kept)
