from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from edgekd.core.recipe import Edit
from edgekd.errors import UserError
from edgekd.nn.edits import replay_edits_
from edgekd.nn.models import BUILDERS
from edgekd.nn.reparam import FUSE, fusable_blocks, reparameterised
from edgekd.testing.toys import toy_cnn
from tests.nn.zoo import images, randomised

SPEC = {"depths": [2, 1], "widths": [4, 4, 8], "strides": [1, 1, 2], "classes": 5}


def network() -> nn.Module:
    return randomised(BUILDERS.get("repvgg")(SPEC)).double()


def test_the_deployed_network_computes_the_same_and_the_trained_one_is_left_as_it_was() -> None:
    module = network()
    before = copy.deepcopy(module.state_dict())
    deployed = reparameterised(module)
    torch.testing.assert_close(deployed(images().double()), module(images().double()), rtol=1e-10, atol=1e-12)
    assert fusable_blocks(deployed) == ()
    assert fusable_blocks(module) == ("stem", "stages.0.0", "stages.0.1", "stages.1.0")
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_network_without_such_blocks_is_returned_as_it_is() -> None:
    module = toy_cnn()
    assert reparameterised(module) is module


def test_the_edit_rebuilds_the_deployed_form_for_weights_that_are_made_in_it() -> None:
    deployed, again = reparameterised(network()), network()
    replay_edits_(again, [Edit.parse(FUSE.plain(), "edit")])
    again.load_state_dict(deployed.state_dict())
    assert torch.equal(again(images().double()), deployed(images().double()))


def test_a_fuse_edit_with_arguments_is_one_of_another_version() -> None:
    with pytest.raises(UserError, match="cannot replay the edit 'fuse'; it knows: resize, replace, fuse"):
        replay_edits_(network(), [Edit(kind="fuse", args={"blocks": "all"})])
