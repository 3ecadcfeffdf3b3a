from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from edgekd.core.preprocess import Preprocessing
from edgekd.nn.build import module_from_recipe
from edgekd.nn.count import count_macs
from edgekd.search.space import SPACES, GridSpace, Task


def space_of(name: str, *, side: int = 8, multiple: int = 8, channels: int = 3) -> GridSpace:
    preprocessing = Preprocessing(size=(side, side), mean=(0.5,) * channels, std=(0.5,) * channels)
    task = Task(preprocessing=preprocessing, labels=("a", "b", "c"), classes=3, channel_multiple=multiple)
    return SPACES.get(name)(task)


@pytest.mark.parametrize("name", list(SPACES))
@pytest.mark.parametrize("side", [8, 32, 96])
def test_sampled_architectures_build_and_classify(name: str, side: int) -> None:
    space = space_of(name, side=side)
    recipe = space.recipe(space.sample(random.Random(0)))
    logits = module_from_recipe(recipe)(torch.zeros(1, 3, side, side))
    assert logits.shape == (1, 3)
    assert recipe.labels == ("a", "b", "c")


@pytest.mark.parametrize("name", list(SPACES))
def test_one_channel_images_are_searched_too(name: str) -> None:
    space = space_of(name, channels=1)
    assert module_from_recipe(space.recipe(space.cheapest))(torch.zeros(1, 1, 8, 8)).shape == (1, 3)


def widths_of(kwargs: Mapping[str, Any]) -> list[int]:
    if "widths" in kwargs:
        return list(kwargs["widths"])
    return [kwargs["stem"], *(stage["channels"] for stage in kwargs["stages"]), kwargs["head"]]


@pytest.mark.parametrize("name", list(SPACES))
@pytest.mark.parametrize("multiple", [1, 8, 16])
def test_every_width_is_a_multiple_of_what_the_device_likes(name: str, multiple: int) -> None:
    space, rng = space_of(name, side=32, multiple=multiple), random.Random(0)
    for _ in range(50):
        widths = widths_of(space.recipe(space.sample(rng)).kwargs)
        assert all(width > 0 and width % multiple == 0 for width in widths)


def test_residual_stages_never_get_narrower() -> None:
    space, rng = space_of("residual", side=96), random.Random(0)
    for _ in range(50):
        widths = widths_of(space.recipe(space.sample(rng)).kwargs)
        assert widths == sorted(widths)


@pytest.mark.parametrize("name", list(SPACES))
def test_the_first_choice_of_every_axis_is_the_cheapest(name: str) -> None:
    space = space_of(name, side=32)
    base = space.recipe(space.cheapest)
    cheapest = count_macs(module_from_recipe(base), (3, 32, 32))
    for place, axis in enumerate(space.axes.values()):
        if len(axis) > 1:
            arch = (*space.cheapest[:place], 1, *space.cheapest[place + 1 :])
            assert count_macs(module_from_recipe(space.recipe(arch)), (3, 32, 32)) > cheapest


def test_a_mutation_changes_exactly_one_axis() -> None:
    space, rng = space_of("residual"), random.Random(0)
    arch = space.sample(rng)
    for _ in range(20):
        child = space.mutate(arch, rng)
        assert sum(a != b for a, b in zip(arch, child, strict=True)) == 1


def test_cheaper_steps_end_at_the_cheapest() -> None:
    space, rng = space_of("residual"), random.Random(0)
    arch, steps = space.sample(rng), 0
    expected = sum(arch)
    while (below := space.cheaper(arch, rng)) is not None:
        arch, steps = below, steps + 1
    assert arch == space.cheapest
    assert steps == expected


def test_the_size_is_the_number_of_different_recipes() -> None:
    space = space_of("residual", multiple=1)
    places = itertools.product(*(range(len(axis)) for axis in space.axes.values()))
    assert len({space.recipe(arch).digest for arch in places}) == space.size
