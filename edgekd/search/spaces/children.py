"""Children of the teacher: its own architecture with fewer blocks and narrower layers, starting from its weights.

Works for any classifier whose layers are at hand, timm's or our own. Nothing is listed by class: blocks that can go
are found by what they compute (`edgekd.nn.skippable`), channels that go together by the analysis that pruning uses too
(`edgekd.nn.channels`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from edgekd.core.recipe import Edit, ModelRecipe
from edgekd.errors import BuildFailed, UserError
from edgekd.nn.build import is_trainable
from edgekd.nn.channels.analysis import analyse
from edgekd.nn.channels.apply import remove_channels_
from edgekd.nn.channels.groups import ChannelGroup
from edgekd.nn.channels.inherit import inherit_
from edgekd.nn.edits import replace_edit, replay_edits_, resize_edit
from edgekd.nn.mode import evaluating
from edgekd.nn.shapes import example_images
from edgekd.nn.skippable import Run, skippable_runs
from edgekd.search.space import Arch, GridSpace, Task, Teacher
from edgekd.search.spaces.cuts import WHOLE, cuts_by_axis, kept_units, removal

_PERCENT = (25, 50, 75, WHOLE)
"""Of the channels that stay."""
_NOISE_IMAGES = 4
"""They find the blocks where no images are given; what a block computes does not depend on them."""


class ChildrenSpace(GridSpace):
    """Blocks kept in each run of residual blocks, and the share of channels kept inside those blocks and outside.

    A run is a stage: blocks under one parent that map one shape to itself. Which blocks go first: those that change
    their input least on the teacher's images; without images the later ones. Layers that are not narrowed keep the
    teacher's width, whatever multiple the target prefers.

    Raises:
        UserError: The task has no teacher, or one that nothing can be cut from.
    """

    builder: ClassVar[str] = ""
    summary: ClassVar[str] = "the teacher itself with fewer blocks and narrower layers, starting from its weights"
    needs_teacher: ClassVar[bool] = True

    def __init__(self, task: Task) -> None:
        self._teacher = _checked(task.teacher)
        module, images = self._teacher.module, self._teacher.images
        shape = task.preprocessing.input_shape
        self._runs = skippable_runs(module, _noise(shape) if images is None else images)
        self._optional = [self._most(run, shape) for run in self._runs]
        try:
            self._cuts = cuts_by_axis(module, analyse(module, shape).groups, self._runs)
            reason = "and no channels can be told apart"
        except BuildFailed as err:
            self._cuts, reason = {}, f"and its channels cannot be told apart ({err.message.rstrip('.')})"
        self._known: dict[Arch, ModelRecipe] = {}
        super().__init__(task)
        if self.size == 1:
            raise UserError(
                f"Nothing can be cut out of this {type(module).__name__}: no block only adds to its input, {reason}.",
                hint="choose another space: --space residual, --space inverted",
            )

    @classmethod
    def initialise_(cls, module: nn.Module, teacher: nn.Module, input_shape: tuple[int, int, int]) -> tuple[str, ...]:
        random = inherit_(module, teacher, input_shape)
        said = (
            "The student starts from the teacher's weights; of narrower layers, from the channels of largest l2 norm."
        )
        return (said, f"Drawn at random instead: {', '.join(random)}.") if random else (said,)

    def recipe(self, arch: Arch) -> ModelRecipe:
        if arch not in self._known:
            choices = {name: axis[choice] for (name, axis), choice in zip(self.axes.items(), arch, strict=True)}
            self._known[arch] = self._cut(choices)
        return self._known[arch]

    def _axes(self) -> Mapping[str, Sequence[int]]:
        axes: dict[str, Sequence[int]] = {}
        for place, (run, optional) in enumerate(zip(self._runs, self._optional, strict=True)):
            if optional:
                axes[f"blocks{place}"] = range(len(run.blocks) - optional, len(run.blocks) + 1)
        for name, groups in self._cuts.items():
            # Of shares that come to the same widths, the largest stands for all.
            shares = {tuple(self._kept(group, percent) for group in groups): percent for percent in _PERCENT}
            if len(shares) > 1:
                axes[name] = sorted(shares.values())
        return axes

    def _kwargs(self, choices: Mapping[str, int]) -> dict[str, JsonValue]:
        return dict(self._teacher.recipe.kwargs)

    def _cut(self, choices: Mapping[str, int]) -> ModelRecipe:
        gone = [
            path
            for place, run in enumerate(self._runs)
            for path in self._dropped(run, len(run.blocks) - choices.get(f"blocks{place}", len(run.blocks)))
        ]
        edits = [replace_edit(path, "identity") for path in gone]
        shallow = _edited(self._teacher.module, edits)
        removals = [
            removed
            for name, groups in self._cuts.items()
            for group in groups
            if (removed := removal(group, self._kept(group, choices.get(name, WHOLE)), gone)) is not None
        ]
        if removals:
            narrow = copy.deepcopy(shallow)
            remove_channels_(narrow, removals)
            edits.append(resize_edit(shallow, narrow))
        recipe = self._teacher.recipe
        return recipe.model_copy(update={"edits": (*recipe.edits, *edits), "labels": self.task.labels})

    def _most(self, run: Run, shape: tuple[int, int, int]) -> int:
        """How many blocks of a run can go: none where the network calls them with more than an identity takes."""
        edits = [replace_edit(path, "identity") for path in self._dropped(run, run.most)]
        shallow = _edited(self._teacher.module, edits)
        try:
            with evaluating(shallow), torch.inference_mode():
                shallow(example_images(shallow, shape))
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
            return 0
        return run.most

    def _dropped(self, run: Run, count: int) -> tuple[str, ...]:
        return run.dropped(count, measured=self._teacher.images is not None)

    def _kept(self, group: ChannelGroup, percent: int) -> int:
        return kept_units(group, percent, self.task.channel_multiple)


def _checked(teacher: Teacher | None) -> Teacher:
    if teacher is None:
        raise UserError(
            "The space 'children' is cut out of the teacher, and none was given.",
            hint="from Python: Task(..., teacher=Teacher(recipe=..., module=...))",
        )
    builder = teacher.recipe.builder
    if not is_trainable(teacher.recipe) or builder == "program":
        raise UserError(
            f"The space 'children' needs a teacher that a recipe builds, and this one comes from a file ({builder}).",
            hint="give the teacher's state dict with --arch, or choose another space",
        )
    return teacher


def _noise(shape: tuple[int, int, int]) -> Tensor:
    return torch.randn(_NOISE_IMAGES, *shape, generator=torch.Generator().manual_seed(0))


def _edited(module: nn.Module, edits: Sequence[Edit]) -> nn.Module:
    edited = copy.deepcopy(module)
    replay_edits_(edited, edits)
    return edited
