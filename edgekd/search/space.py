"""What can be searched: a grid of choices whose every point is a model recipe.

A space knows nothing of scores and budgets. It only orders each axis from cheap to expensive, so that a search can walk
an architecture that is too slow towards a faster one.
"""

from __future__ import annotations

import itertools
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from pydantic import JsonValue

from edgekd.core.preprocess import Preprocessing
from edgekd.core.recipe import ModelRecipe
from edgekd.core.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor, nn

Arch = tuple[int, ...]
"""The position chosen on each axis of a space; 0 is the cheapest choice."""


class SearchSpace(Protocol):
    """A finite set of architectures."""

    @property
    def size(self) -> int:
        """How many architectures there are."""

    @property
    def cheapest(self) -> Arch:
        """The architecture that takes the cheapest choice everywhere."""

    def architectures(self) -> Iterator[Arch]:
        """All of them, the cheapest first."""

    def sample(self, rng: random.Random) -> Arch:
        """An architecture, uniform over the space."""

    def mutate(self, arch: Arch, rng: random.Random) -> Arch:
        """A neighbour of `arch`: another choice on one axis. `arch` itself when it is the only architecture."""

    def dearer(self, arch: Arch) -> Iterator[Arch]:
        """Every architecture one step up from `arch` on one axis."""

    def cheaper(self, arch: Arch, rng: random.Random) -> Arch | None:
        """`arch` one step down on an axis chosen at random; None when it is the cheapest."""

    def recipe(self, arch: Arch) -> ModelRecipe:
        """How to build it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Teacher:
    """The network that students are cut out of, for spaces that need one.

    Attributes:
        recipe: Builds its architecture.
        module: With its weights; left as it was.
        images: (N, C, H, W), preprocessed; what is left out of the teacher is chosen on them. None decides without.
    """

    recipe: ModelRecipe
    module: nn.Module
    images: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every student of a search has in common.

    Attributes:
        preprocessing: The teacher's; it fixes the size and the channels of the input.
        labels: Class names, may be empty.
        classes: K.
        channel_multiple: Every width is a multiple of this.
        teacher: For spaces that need it.
    """

    preprocessing: Preprocessing
    labels: tuple[str, ...]
    classes: int
    channel_multiple: int
    teacher: Teacher | None = None

    @property
    def side(self) -> int:
        """The shorter side of the input, pixels."""
        return min(self.preprocessing.size)

    def width(self, wanted: float) -> int:
        """The allowed width nearest to the wanted one."""
        return max(1, round(wanted / self.channel_multiple)) * self.channel_multiple

    def widths(self, base: int, factors: Sequence[float]) -> tuple[int, ...]:
        """Distinct allowed widths near `base` times each factor, ascending."""
        return tuple(sorted({self.width(base * factor) for factor in factors}))


class GridSpace(ABC):
    """A space whose axes are independent.

    Subclasses set the builder and say what the axes are and what a choice on each of them means. Every architecture
    builds, trains, prunes, exports and reloads: `edgekd.testing.conformance_space` checks it.

    Args:
        task: What is fixed.

    Attributes:
        builder: Of the recipes.
        summary: One line for listings.
        follows_target: Whether widths are multiples of the task's `channel_multiple`; the networks of a benchmark stay
            what they were published as.
        needs_teacher: Whether the task must hold the teacher.
        axes: Choices by axis, each from cheap to expensive.
    """

    builder: ClassVar[str]
    summary: ClassVar[str]
    follows_target: ClassVar[bool] = True
    needs_teacher: ClassVar[bool] = False

    def __init__(self, task: Task) -> None:
        self.task = task
        self.axes = self._axes()

    @abstractmethod
    def _axes(self) -> Mapping[str, Sequence[int]]:
        """Choices by axis; the order of the axes is the order of an `Arch`."""

    @abstractmethod
    def _kwargs(self, choices: Mapping[str, int]) -> dict[str, JsonValue]:
        """The builder's arguments, those of `_fixed` excepted."""

    def _fixed(self) -> dict[str, JsonValue]:
        """The builder's arguments that all architectures share."""
        return {"classes": self.task.classes, "in_channels": self.task.preprocessing.channels}

    @classmethod
    def initialise_(cls, module: nn.Module, teacher: nn.Module, input_shape: tuple[int, int, int]) -> tuple[str, ...]:
        """Gives a student of this space the weights it starts its training from.

        Most spaces leave the random ones; students that are cut out of the teacher take its weights over.

        Args:
            module: Built from a recipe of this space.
            teacher: With its weights; left as it was.
            input_shape: (C, H, W) of both.

        Returns:
            Decisions: sentences on what was taken over; none where nothing was.
        """
        return ()

    @property
    def size(self) -> int:
        return math.prod(len(axis) for axis in self.axes.values())

    @property
    def cheapest(self) -> Arch:
        return (0,) * len(self.axes)

    def architectures(self) -> Iterator[Arch]:
        return itertools.product(*(range(len(axis)) for axis in self.axes.values()))

    def sample(self, rng: random.Random) -> Arch:
        return tuple(rng.randrange(len(axis)) for axis in self.axes.values())

    def mutate(self, arch: Arch, rng: random.Random) -> Arch:
        lengths = [len(axis) for axis in self.axes.values()]
        open_axes = [place for place, length in enumerate(lengths) if length > 1]
        if not open_axes:
            return arch
        place = rng.choice(open_axes)
        others = [choice for choice in range(lengths[place]) if choice != arch[place]]
        return (*arch[:place], rng.choice(others), *arch[place + 1 :])

    def dearer(self, arch: Arch) -> Iterator[Arch]:
        for place, (choice, axis) in enumerate(zip(arch, self.axes.values(), strict=True)):
            if choice + 1 < len(axis):
                yield (*arch[:place], choice + 1, *arch[place + 1 :])

    def cheaper(self, arch: Arch, rng: random.Random) -> Arch | None:
        above = [place for place, choice in enumerate(arch) if choice > 0]
        if not above:
            return None
        place = rng.choice(above)
        return (*arch[:place], arch[place] - 1, *arch[place + 1 :])

    def recipe(self, arch: Arch) -> ModelRecipe:
        choices = {name: axis[choice] for (name, axis), choice in zip(self.axes.items(), arch, strict=True)}
        return ModelRecipe(
            builder=self.builder,
            kwargs={**self._kwargs(choices), **self._fixed()},
            preprocessing=self.task.preprocessing,
            labels=self.task.labels,
        )


SPACES: Registry[type[GridSpace]] = Registry(
    "search space",
    {
        "residual": "edgekd.search.spaces.residual:ResidualSpace",
        "inverted": "edgekd.search.spaces.inverted:InvertedSpace",
        "resnet": "edgekd.search.spaces.resnet:ResNetSpace",
        "repvgg": "edgekd.search.spaces.repvgg:RepVggSpace",
        "vit": "edgekd.search.spaces.vit:VitSpace",
        "children": "edgekd.search.spaces.children:ChildrenSpace",
        "diswot-s0": "edgekd.search.spaces.diswot_s0:DisWotS0Space",
        "nasbench201": "edgekd.search.spaces.nasbench201:NasBench201Space",
    },
)
