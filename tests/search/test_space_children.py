from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch import nn

from edgekd.core.preprocess import Preprocessing
from edgekd.core.recipe import ModelRecipe
from edgekd.errors import UserError
from edgekd.nn.build import module_from_recipe
from edgekd.nn.count import count_macs
from edgekd.search.space import Task, Teacher
from edgekd.search.spaces.children import ChildrenSpace

SIDE = 32
PIXELS = Preprocessing(size=(SIDE, SIDE), mean=(0.5,) * 3, std=(0.5,) * 3)
RESIDUAL = {"depths": [3, 2], "widths": [16, 16, 32], "classes": 4}


def recipe_of(builder: str, kwargs: dict) -> ModelRecipe:
    return ModelRecipe(builder=builder, kwargs=kwargs, preprocessing=PIXELS)


def task_of(recipe: ModelRecipe, *, module: nn.Module | None = None, multiple: int = 8, measured: bool = False) -> Task:
    teacher = Teacher(
        recipe=recipe,
        module=module_from_recipe(recipe, seed=7) if module is None else module,
        images=images() if measured else None,
    )
    return Task(preprocessing=PIXELS, labels=(), classes=4, channel_multiple=multiple, teacher=teacher)


def images() -> torch.Tensor:
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def replaced(recipe: ModelRecipe) -> list[str]:
    return [str(edit.args["path"]) for edit in recipe.edits if edit.kind == "replace"]


def test_stages_lose_their_later_blocks_first_and_are_never_empty() -> None:
    space = ChildrenSpace(task_of(recipe_of("edgekd:residual", RESIDUAL)))
    assert list(space.axes["blocks0"]) == [1, 2, 3]
    assert list(space.axes["blocks1"]) == [0, 1]  # beside the block that halves the resolution
    arch = tuple(0 if name.startswith("blocks") else len(axis) - 1 for name, axis in space.axes.items())
    assert replaced(space.recipe(arch)) == ["stages.0.1", "stages.0.2", "stages.1.1"]


def test_with_images_the_block_that_changes_least_goes_first() -> None:
    recipe = recipe_of("edgekd:residual", RESIDUAL)
    module = module_from_recipe(recipe, seed=7)
    with torch.no_grad():
        module.get_submodule("stages.0.0.bn2").weight.mul_(1e-3)
    space = ChildrenSpace(task_of(recipe, module=module, measured=True))
    one_less = tuple(len(axis) - 1 - (name == "blocks0") for name, axis in space.axes.items())
    assert replaced(space.recipe(one_less)) == ["stages.0.0"]


def test_the_largest_child_is_the_teacher_and_starts_as_it() -> None:
    task = task_of(recipe_of("edgekd:residual", RESIDUAL))
    space = ChildrenSpace(task)
    whole = space.recipe(tuple(len(axis) - 1 for axis in space.axes.values()))
    child = module_from_recipe(whole)
    said = ChildrenSpace.initialise_(child, task.teacher.module, (3, SIDE, SIDE))
    assert whole.edits == ()
    assert torch.equal(child(images()), task.teacher.module(images()))
    assert len(said) == 1


def test_a_shallower_child_computes_what_its_teacher_does_without_those_blocks() -> None:
    task = task_of(recipe_of("edgekd:residual", RESIDUAL))
    space, teacher = ChildrenSpace(task), task.teacher.module
    one_less = tuple(len(axis) - 1 - (name == "blocks0") for name, axis in space.axes.items())
    child = module_from_recipe(space.recipe(one_less), seed=5)
    ChildrenSpace.initialise_(child, teacher, (3, SIDE, SIDE))
    features = teacher.stages[1](teacher.stages[0][1](teacher.stages[0][0](teacher.stem(images()))))
    assert torch.equal(child(images()), teacher.classifier(features.mean((2, 3))))


TIMM = [
    ("timm:resnet18", {"num_classes": 4}),
    ("timm:mobilenetv3_small_050", {"num_classes": 4}),
    (
        "timm:vit_tiny_patch16_224",
        {"num_classes": 4, "img_size": SIDE, "patch_size": 8, "depth": 3, "embed_dim": 64, "num_heads": 2},
    ),
]


@pytest.mark.parametrize(
    ("builder", "kwargs"),
    [pytest.param(*model, marks=pytest.mark.slow if "mobilenet" in model[0] else ()) for model in TIMM],
)
def test_models_of_timm_get_shallower_and_narrower_and_keep_the_teachers_weights(builder: str, kwargs: dict) -> None:
    task = task_of(recipe_of(builder, kwargs))
    space = ChildrenSpace(task)
    macs = []
    for arch in (space.cheapest, space.sample(random.Random(0)), tuple(len(axis) - 1 for axis in space.axes.values())):
        child = module_from_recipe(space.recipe(arch))
        assert len(ChildrenSpace.initialise_(child, task.teacher.module, (3, SIDE, SIDE))) == 1
        assert torch.isfinite(child(images())).all()
        macs.append(count_macs(child, (3, SIDE, SIDE)))
    assert macs[0] < macs[1] < macs[2]
    assert any(name.startswith("blocks") for name in space.axes)
    assert any(name.startswith("inner") for name in space.axes)


def test_every_combination_of_cuts_fits_together() -> None:
    space = ChildrenSpace(task_of(recipe_of("edgekd:residual", {**RESIDUAL, "depths": [2, 2]}), multiple=4))
    for arch in itertools.islice(itertools.product(*(range(len(axis)) for axis in space.axes.values())), 0, None, 7):
        assert module_from_recipe(space.recipe(arch))(images()).shape == (2, 4)


def test_children_of_a_pruned_teacher_keep_its_edits() -> None:
    first = ChildrenSpace(task_of(recipe_of("edgekd:residual", RESIDUAL)))
    pruned = first.recipe(tuple(max(0, len(axis) - 2) for axis in first.axes.values()))
    space = ChildrenSpace(task_of(pruned))
    child = space.recipe(space.cheapest)
    assert child.edits[: len(pruned.edits)] == pruned.edits
    assert module_from_recipe(child)(images()).shape == (2, 4)


def test_a_search_without_a_teacher_says_what_is_missing() -> None:
    with pytest.raises(UserError, match="cut out of the teacher, and none was given"):
        ChildrenSpace(Task(preprocessing=PIXELS, labels=(), classes=4, channel_multiple=8))


def test_a_teacher_that_comes_from_a_file_is_refused_with_a_way_out() -> None:
    recipe = ModelRecipe(builder="program", kwargs={"form": "rebuilt"}, preprocessing=PIXELS)
    with pytest.raises(UserError, match=r"comes from a file \(program\)") as caught:
        ChildrenSpace(task_of(recipe, module=nn.Identity()))
    assert "--arch" in str(caught.value.hint)


def test_a_teacher_that_nothing_can_be_cut_from_is_refused() -> None:
    recipe = recipe_of("edgekd:residual", {"depths": [1], "widths": [8, 8], "classes": 4})
    with pytest.raises(UserError, match="Nothing can be cut out of this Residual: no block only adds to its input"):
        ChildrenSpace(task_of(recipe))
