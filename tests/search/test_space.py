from __future__ import annotations

import itertools
import random

import pytest
import torch

from edgekd.core.preprocess import Preprocessing
from edgekd.errors import UserError
from edgekd.nn.build import module_from_recipe
from edgekd.nn.count import count_macs, count_params
from edgekd.search.limit import Costs
from edgekd.search.space import SPACES, GridSpace, Task
from edgekd.search.spaces.diswot_s0 import s0_recipe

GENERAL = sorted(name for name in SPACES if SPACES.get(name).follows_target and not SPACES.get(name).needs_teacher)


def space_of(name: str, *, side: int = 8, multiple: int = 8, classes: int = 3) -> GridSpace:
    task = Task(preprocessing=pixels(side), labels=(), classes=classes, channel_multiple=multiple)
    return SPACES.get(name)(task)


def pixels(side: int) -> Preprocessing:
    return Preprocessing(size=(side, side), mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.mark.parametrize("name", GENERAL)
@pytest.mark.parametrize("side", [8, 32, 96])
def test_images_of_any_usual_size_are_classified(name: str, side: int) -> None:
    space = space_of(name, side=side)
    recipe = space.recipe(space.sample(random.Random(0)))
    assert module_from_recipe(recipe)(torch.zeros(1, 3, side, side)).shape == (1, 3)


@pytest.mark.parametrize("name", ["residual", "repvgg", "resnet"])
def test_stages_never_get_narrower(name: str) -> None:
    space, rng = space_of(name, side=96), random.Random(0)
    for _ in range(50):
        widths = space.recipe(space.sample(rng)).kwargs["widths"]
        assert widths == sorted(widths)


@pytest.mark.parametrize("name", GENERAL)
def test_the_first_choice_of_every_axis_is_the_cheapest(name: str) -> None:
    space = space_of(name, side=32)
    cheapest = count_macs(module_from_recipe(space.recipe(space.cheapest)), (3, 32, 32))
    for place, axis in enumerate(space.axes.values()):
        if len(axis) > 1:
            arch = (*space.cheapest[:place], 1, *space.cheapest[place + 1 :])
            assert count_macs(module_from_recipe(space.recipe(arch)), (3, 32, 32)) >= cheapest


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


@pytest.mark.parametrize("name", ["residual", "diswot-s0", "vit"])
def test_the_size_is_the_number_of_different_recipes(name: str) -> None:
    space = space_of(name, multiple=1)
    places = itertools.product(*(range(len(axis)) for axis in space.axes.values()))
    assert len({space.recipe(arch).digest for arch in places}) == space.size


def test_s0_is_the_benchmark_of_64_networks_with_the_published_numbers_of_parameters() -> None:
    space = space_of("diswot-s0", side=32, classes=100, multiple=32)
    counts = [count_params(module_from_recipe(space.recipe(arch))) for arch in itertools.product(range(4), repeat=3)]
    assert space.size == len(set(counts)) == 64
    assert (min(counts), max(counts)) == (83_892, 667_188)


def test_s0_recipes_are_made_from_depths_and_are_those_of_the_space() -> None:
    space = space_of("diswot-s0", side=32, classes=100)
    assert s0_recipe((3, 1, 7), classes=100, preprocessing=pixels(32)) == space.recipe((1, 0, 3))


def test_s0_lies_inside_the_residual_space() -> None:
    wide = space_of("residual", side=32, classes=100)
    wanted = {"stem_stride": 1, "width": 16, "growth1": 4, "growth2": 4, "depth0": 7, "depth1": 5, "depth2": 1}
    arch = tuple(tuple(axis).index(wanted[name]) for name, axis in wide.axes.items())
    assert wide.recipe(arch) == s0_recipe((7, 5, 1), classes=100, preprocessing=pixels(32))


@pytest.mark.parametrize("depths", [(3, 3), (3, 4, 3)])
def test_depths_outside_of_s0_are_refused(depths: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"3 stages of 1, 3, 5, 7 blocks; got \[3, "):
        s0_recipe(depths, classes=100, preprocessing=pixels(32))


def test_the_cost_of_a_repvgg_is_that_of_its_deployed_form() -> None:
    space = space_of("repvgg", side=32)
    cost = Costs(space, input_shape=(3, 32, 32), model=None, precision="fp32").of(space.cheapest)
    trained = module_from_recipe(space.recipe(space.cheapest))
    assert cost.macs < count_macs(trained, (3, 32, 32))
    assert cost.params < count_params(trained)


def test_images_that_no_patch_divides_are_refused_with_a_way_out() -> None:
    with pytest.raises(UserError, match="No vision transformer takes images of 31x31") as caught:
        space_of("vit", side=31)
    assert "another space" in str(caught.value.hint)


def test_the_deit_tiny_shape_is_a_vit_of_the_space() -> None:
    space = space_of("vit", side=224)
    wanted = {"patch": 16, "width": 192, "depth": 12, "head": 64, "mlp_ratio": 4}
    arch = tuple(tuple(axis).index(wanted[name]) for name, axis in space.axes.items())
    assert space.recipe(arch).kwargs["num_heads"] == 3
