from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgekd.core.recipe import Edit
from edgekd.errors import EdgekdError, UserError
from edgekd.nn.build import module_from_recipe
from edgekd.nn.edits import replay_edits_, resize_edit
from edgekd.testing.toys import toy_cnn, toy_recipe
from tests.nn.zoo import Tokens, images, randomised


class Plain(nn.Module):
    """Two convolutions, a norm that owns a tuple, and a bare parameter."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.norm = nn.LayerNorm(width)
        self.gamma = nn.Parameter(torch.ones(width))
        self.head = nn.Linear(width, 2)
        self.scale = width**-0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x).mean((2, 3))
        out: torch.Tensor = self.head(self.norm(y) * self.gamma * self.scale)
        return out


@given(width=st.integers(1, 8))
@settings(max_examples=8, deadline=None)
def test_a_narrower_network_reloads_bit_for_bit_from_its_edit(width: int) -> None:
    before, after = randomised(Plain(8)), randomised(Plain(width))
    edit = Edit.parse(resize_edit(before, after).plain(), "edit")
    again = copy.deepcopy(before)
    replay_edits_(again, [edit])
    again.load_state_dict(after.state_dict())
    assert torch.equal(again(images()), after(images()))
    assert again.norm.normalized_shape == (width,)
    assert again.scale == after.scale


def test_numbers_that_modules_keep_are_replayed() -> None:
    before, after = Tokens(), Tokens()
    after.num_heads = 1
    edit = resize_edit(before, after)
    replay_edits_(before, [edit])
    assert edit.args == {"tensors": {}, "numbers": {"": {"num_heads": 1}}}
    assert before.num_heads == 1


def test_a_tensor_keeps_its_leading_part_so_that_a_resized_recipe_is_not_dead() -> None:
    before = Plain(8)
    weight = before.conv.weight.detach().clone()
    replay_edits_(before, [resize_edit(Plain(8), Plain(3))])
    assert torch.equal(before.conv.weight, weight[:3])
    assert before.conv.weight.requires_grad


def test_two_names_of_one_parameter_stay_one_parameter() -> None:
    def tied(width: int) -> nn.Module:
        module = nn.ModuleDict({"a": nn.Linear(4, width), "b": nn.Linear(4, width)})
        module["b"].weight = module["a"].weight
        return module

    module = tied(6)
    replay_edits_(module, [resize_edit(tied(6), tied(2))])
    assert module["a"].weight is module["b"].weight


def test_equal_modules_need_an_empty_edit() -> None:
    assert resize_edit(toy_cnn(), toy_cnn(seed=1)).args == {"tensors": {}, "numbers": {}}


def test_edits_are_part_of_building_a_recipe() -> None:
    narrow = toy_recipe().model_copy(update={"kwargs": {**toy_recipe().kwargs, "widths": [8, 8, 12]}})
    after = module_from_recipe(narrow)
    again = module_from_recipe(toy_recipe().with_edit(resize_edit(toy_cnn(), after)))
    again.load_state_dict(after.state_dict())
    assert torch.equal(again(images()), after(images()))


def test_modules_that_differ_by_more_than_sizes_have_no_resize_edit() -> None:
    with pytest.raises(EdgekdError, match="differ in their parts"):
        resize_edit(toy_cnn(), nn.Linear(2, 2))


def test_a_changed_buffer_that_no_state_dict_holds_is_refused() -> None:
    def with_index(size: int) -> nn.Module:
        module = nn.Linear(2, 2)
        module.register_buffer("index", torch.arange(size), persistent=False)
        return module

    with pytest.raises(EdgekdError, match="buffer 'index' changed"):
        resize_edit(with_index(4), with_index(3))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (
            {"tensors": {"stem.9.weight": [1]}, "numbers": {}},
            "resizes stem.9.weight to (1,), but the built model has no such tensor there",
        ),
        ({"tensors": {"stem.0.weight": [99, 3, 3, 3]}, "numbers": {}}, "the built model has (8, 3, 3, 3) there"),
        ({"tensors": {"stem.0.wait": [1]}, "numbers": {}}, "has no such tensor there"),
        ({"tensors": {}, "numbers": {"stem.0": {"heads": 2}}}, "has no such number"),
        ({"tensors": {}}, "'numbers' is missing"),
    ],
)
def test_an_edit_that_does_not_fit_the_built_model_is_refused(args: dict, words: str) -> None:
    with pytest.raises(UserError) as caught:
        replay_edits_(toy_cnn(), [Edit(kind="resize", args=args)])
    assert words in str(caught.value)
