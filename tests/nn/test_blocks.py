from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekd.errors import UserError
from edgekd.nn.blocks import BLOCKS
from edgekd.nn.build import module_from_recipe
from edgekd.nn.count import count_macs, layer_costs
from edgekd.nn.edits import replace_edit
from edgekd.nn.reparam import reparameterised
from edgekd.testing.toys import toy_recipe

ARGUMENTS = {
    "identity": {},
    "conv": {"in_channels": 8, "channels": 16, "stride": 2},
    "repvgg": {"in_channels": 8, "channels": 16, "stride": 2},
    "basic": {"in_channels": 8, "channels": 16, "stride": 2, "hidden": 4},
    "inverted": {"in_channels": 8, "channels": 16, "stride": 2, "hidden": 24},
}


def images(size: int = 7) -> torch.Tensor:
    return torch.randn(2, 8, size, size, generator=torch.Generator().manual_seed(0))


def test_every_registered_block_is_tested() -> None:
    assert set(ARGUMENTS) == set(BLOCKS)


@pytest.mark.parametrize("name", [name for name in ARGUMENTS if name != "identity"])
def test_a_block_keeps_its_promise_on_shapes_and_signs(name: str) -> None:
    for relu in (True,) if name == "repvgg" else (True, False):
        block = BLOCKS.get(name)(ARGUMENTS[name] | {"relu": relu})
        out = block(images())
        assert out.shape == (2, 16, 4, 4)
        assert bool((out < 0).any()) is not relu


@pytest.mark.parametrize("name", ["basic", "inverted"])
def test_the_input_is_added_where_shapes_agree(name: str) -> None:
    block = BLOCKS.get(name)({"in_channels": 8, "channels": 8, "hidden": 8, "relu": False}).eval()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
    assert torch.equal(block(images()), images())


@pytest.mark.parametrize("name", ["conv", "repvgg"])
def test_a_convolution_is_one_kernel_on_a_device(name: str) -> None:
    block = reparameterised(nn.Sequential(BLOCKS.get(name)({"in_channels": 8, "channels": 8})))
    costs = layer_costs(block, (8, 4, 4))
    assert [cost.kind for cost in costs if not cost.fused] == ["conv"]


def test_an_inverted_block_as_wide_as_its_input_has_nothing_to_expand() -> None:
    block = BLOCKS.get("inverted")({"in_channels": 8, "channels": 16, "hidden": 8})
    assert count_macs(block, (8, 4, 4)) == 4 * 4 * 8 * (9 + 16)


def test_equal_seeds_give_equal_blocks() -> None:
    recipe = toy_recipe().with_edit(replace_edit("stages.1.0", "basic", ARGUMENTS["basic"]))
    first, again, other = (module_from_recipe(recipe, seed=seed).stages[1][0].state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["layers.0.weight"], other["layers.0.weight"])


@pytest.mark.parametrize(
    ("name", "kwargs", "words"),
    [
        ("basic", {"in_channels": 8, "channels": 8}, "block 'basic': 'hidden' is missing"),
        ("conv", {"in_channels": 8, "channels": 8, "kernel": 4}, "must be odd"),
        ("repvgg", {"in_channels": 8, "channels": 8, "relu": False}, "Input should be True"),
        ("conv", {"in_channels": 8, "channels": 8, "strid": 2}, "Did you mean 'stride'?"),
        ("identity", {"channels": 8}, "unknown key 'channels'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(name: str, kwargs: dict, words: str) -> None:
    with pytest.raises(UserError) as caught:
        BLOCKS.get(name)(kwargs)
    assert words in str(caught.value)
