from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from edgekd.core.preprocess import Preprocessing
from edgekd.core.recipe import ModelRecipe
from edgekd.errors import UserError
from edgekd.nn.build import module_from_recipe
from edgekd.search.blocks.chain import chains, find_blocks, stages
from edgekd.testing.toys import toy_cnn
from tests.nn.zoo import Tokens
from tests.search.blocks.nets import Backbone, Net, Skipping, Stage, block

SHAPE = (3, 8, 8)


def paths(module: nn.Module) -> list[str]:
    return [found.path for found in find_blocks(module, SHAPE)]


def timm(name: str) -> nn.Module:
    recipe = ModelRecipe(builder=f"timm:{name}", kwargs={"num_classes": 4}, preprocessing=Preprocessing(size=(32, 32)))
    return module_from_recipe(recipe)


def test_blocks_are_found_with_their_shapes_and_links() -> None:
    found = find_blocks(toy_cnn(), SHAPE)
    assert [one.path for one in found] == ["stem", "stages.0.0", "stages.1.0"]
    assert [one.output for one in found] == [(8, 8, 8), (8, 8, 8), (16, 4, 4)]
    assert [one.linked for one in found] == [False, True, True]
    assert all(one.relu for one in found)


def test_stages_begin_where_the_shape_changes_and_chains_where_links_end() -> None:
    found = find_blocks(toy_cnn(), SHAPE)
    assert stages(found) == [range(2), range(2, 3)]
    assert chains(found) == [range(3)]


def test_the_network_is_left_as_it_was() -> None:
    module = toy_cnn().train()
    before, state = str(module), copy.deepcopy(module.state_dict())
    find_blocks(module, SHAPE)
    assert str(module) == before
    assert module.training
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (Backbone(block(), block()), ["body"]),
        (Backbone(*(block() for _ in range(4))), [f"body.blocks.{index}" for index in range(4)]),
        (
            nn.Sequential(nn.Conv2d(3, 8, 3), Stage(block(), block()), Stage(block(8, 8, 2), block())),
            ["body.1.blocks.0", "body.1.blocks.1", "body.2.blocks.0", "body.2.blocks.1"],
        ),
    ],
)
def test_containers_are_looked_into_and_small_modules_are_blocks(body: nn.Module, expected: list[str]) -> None:
    assert paths(Net(body)) == expected


def test_a_block_whose_output_is_read_twice_is_not_linked_with_the_next_one() -> None:
    found = find_blocks(Skipping(), SHAPE)
    assert [one.linked for one in found] == [False, True, False, True]


@pytest.mark.parametrize(
    ("name", "first", "blocks"), [("resnet10t", "layer1.0", 4), ("mobilenetv2_035", "blocks.0.0", 17)]
)
def test_models_of_another_library_are_taken_apart(name: str, first: str, blocks: int) -> None:
    found = find_blocks(timm(name), (3, 32, 32))
    found = tuple(one for one in found if one.path.startswith(("layer", "blocks")))
    assert len(found) == blocks
    assert found[0].path == first
    assert all(one.linked for one in found[1:])
    assert any(not one.relu for one in found) == (name != "resnet10t")
    assert all(one.depthwise for one in found) == (name != "resnet10t")


def test_a_network_without_blocks_is_refused() -> None:
    with pytest.raises(UserError, match="no block that could be replaced") as caught:
        find_blocks(Tokens(), SHAPE)
    assert "--students" in str(caught.value)
