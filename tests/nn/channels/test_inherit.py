from __future__ import annotations

import copy

import torch
from torch import nn

from edgekd.nn.channels.analysis import analyse
from edgekd.nn.channels.apply import made_by, remove_channels_
from edgekd.nn.channels.importance import unit_sums
from edgekd.nn.channels.inherit import inherit_
from edgekd.testing.toys import toy_cnn
from tests.nn.zoo import images, randomised

SHAPE = (3, 8, 8)


def reset(module: nn.Module) -> nn.Module:
    return randomised(copy.deepcopy(module), seed=9)


def test_an_uncut_network_becomes_the_teacher() -> None:
    teacher = randomised(toy_cnn())
    child = reset(teacher)
    assert inherit_(child, teacher, SHAPE) == ()
    assert torch.equal(child(images()), teacher(images()))


def test_narrower_layers_start_as_the_pruned_teacher() -> None:
    teacher = randomised(toy_cnn())
    groups = analyse(teacher, SHAPE).groups
    least = [(group, unit_sums(teacher, group, "l2").argsort(stable=True)[:2].sort().values) for group in groups]
    pruned = copy.deepcopy(teacher)
    remove_channels_(pruned, least)
    child = copy.deepcopy(teacher)
    remove_channels_(child, [(group, torch.arange(2)) for group in groups])  # the right shapes, the wrong units
    inherit_(child, teacher, SHAPE)
    assert torch.equal(child(images()), pruned(images()))


def test_tensors_that_the_teacher_does_not_have_are_named_and_left_alone() -> None:
    teacher = randomised(toy_cnn())
    child = reset(teacher)
    child.stem[0] = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False))
    weight = child.stem[0][0].weight.detach().clone()
    assert inherit_(child, teacher, SHAPE) == ("stem.0.0.weight",)
    assert torch.equal(child.stem[0][0].weight, weight)


def test_every_group_of_a_plain_network_has_a_layer_that_makes_its_channels() -> None:
    teacher = toy_cnn()
    for group in analyse(teacher, SHAPE).groups:
        path = made_by(teacher, group)
        assert path is not None
        assert made_by(teacher, group, among=()) is None
