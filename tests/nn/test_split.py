from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from edgekd.core.recipe import Edit
from edgekd.errors import UserError
from edgekd.nn.edits import replay_edits_, split_edit
from edgekd.nn.rebuild import module_from_program
from edgekd.nn.split import places_to_cut
from edgekd.testing.toys import toy_cnn
from tests.nn.zoo import Mixed, PaddedShortcut, exported, images, randomised


def rebuilt(module: nn.Module) -> nn.Module:
    return module_from_program(exported(randomised(module), images(2)))


@pytest.mark.parametrize(("module", "parts"), [(toy_cnn(), 3), (PaddedShortcut(), 2), (Mixed(), 4)])
def test_a_split_program_computes_the_same_bits(module: nn.Module, parts: int) -> None:
    whole = rebuilt(module)
    split = copy.deepcopy(whole)
    edit = Edit.parse(split_edit(places_to_cut(whole)).plain(), "edit")
    replay_edits_(split, [edit])
    assert [name for name, _ in split.named_children()] == [f"part{index}" for index in range(parts)]
    assert torch.equal(split(images()), whole(images()))


def test_a_residual_block_is_one_part_with_its_layers_under_their_names() -> None:
    module = rebuilt(toy_cnn())
    replay_edits_(module, [split_edit(places_to_cut(module))])
    layers = {name for name, part in module.get_submodule("part1").named_modules() if isinstance(part, nn.Conv2d)}
    assert layers == {"stages.0.0.conv1", "stages.0.0.conv2"}


def test_a_split_program_trains_and_keeps_nothing_of_the_flat_one() -> None:
    module = rebuilt(Mixed())
    before = sum(parameter.numel() for parameter in module.parameters())
    replay_edits_(module, [split_edit(places_to_cut(module))])
    module.train()(images()).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert sum(parameter.numel() for parameter in module.parameters()) == before
    assert all(name.startswith("part") for name in module.state_dict())


def test_a_cut_that_the_program_does_not_have_is_refused() -> None:
    with pytest.raises(UserError, match="cuts the program after 'relu_77'"):
        replay_edits_(rebuilt(toy_cnn()), [split_edit(["relu_77"])])


def test_only_a_program_is_split() -> None:
    with pytest.raises(UserError, match="Only a rebuilt program"):
        replay_edits_(toy_cnn(), [split_edit(["relu"])])
