"""What can be searched: a grid of choices whose every point is a model recipe.

A space knows nothing of scores and budgets. It only orders each axis from cheap to expensive, so that a search can walk
an architecture that is too slow towards a faster one.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from pydantic import JsonValue

from edgekd.core.preprocess import Preprocessing
from edgekd.core.recipe import ModelRecipe
from edgekd.core.registry import Registry

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

    def sample(self, rng: random.Random) -> Arch:
        """An architecture, uniform over the space."""

    def mutate(self, arch: Arch, rng: random.Random) -> Arch:
        """A neighbour of `arch`: another choice on one axis. `arch` itself when it is the only architecture."""

    def cheaper(self, arch: Arch, rng: random.Random) -> Arch | None:
        """`arch` one step down on an axis chosen at random; None when it is the cheapest."""

    def recipe(self, arch: Arch) -> ModelRecipe:
        """How to build it."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every student of a search has in common.

    Attributes:
        preprocessing: The teacher's; it fixes the size and the channels of the input.
        labels: Class names, may be empty.
        classes: K.
        channel_multiple: Every width is a multiple of this.
    """

    preprocessing: Preprocessing
    labels: tuple[str, ...]
    classes: int
    channel_multiple: int

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

    Subclasses set the builder and say what the axes are and what a choice on each of them means.

    Args:
        task: What is fixed.

    Attributes:
        builder: Of the recipes.
        axes: Choices by axis, each from cheap to expensive.
    """

    builder: ClassVar[str]

    def __init__(self, task: Task) -> None:
        self.task = task
        self.axes = self._axes()

    @abstractmethod
    def _axes(self) -> Mapping[str, Sequence[int]]:
        """Choices by axis; the order of the axes is the order of an `Arch`."""

    @abstractmethod
    def _kwargs(self, choices: Mapping[str, int]) -> dict[str, JsonValue]:
        """The builder's arguments, `classes` and `in_channels` excepted."""

    @property
    def size(self) -> int:
        return math.prod(len(axis) for axis in self.axes.values())

    @property
    def cheapest(self) -> Arch:
        return (0,) * len(self.axes)

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

    def cheaper(self, arch: Arch, rng: random.Random) -> Arch | None:
        above = [place for place, choice in enumerate(arch) if choice > 0]
        if not above:
            return None
        place = rng.choice(above)
        return (*arch[:place], arch[place] - 1, *arch[place + 1 :])

    def recipe(self, arch: Arch) -> ModelRecipe:
        choices = {name: axis[choice] for (name, axis), choice in zip(self.axes.items(), arch, strict=True)}
        fixed: dict[str, JsonValue] = {
            "classes": self.task.classes,
            "in_channels": self.task.preprocessing.channels,
        }
        return ModelRecipe(
            builder=self.builder,
            kwargs={**self._kwargs(choices), **fixed},
            preprocessing=self.task.preprocessing,
            labels=self.task.labels,
        )


SPACES: Registry[type[GridSpace]] = Registry(
    "search space",
    {
        "residual": "edgekd.search.spaces.residual:ResidualSpace",
        "inverted": "edgekd.search.spaces.inverted:InvertedSpace",
    },
)
