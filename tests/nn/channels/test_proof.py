from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgekd.errors import BuildFailed
from edgekd.nn.channels.analysis import Analysis, analyse
from edgekd.nn.channels.apply import remove_channels_
from edgekd.nn.channels.groups import ChannelGroup
from edgekd.nn.channels.proof import Proof
from tests.nn.channels.couplings import FixedHeads
from tests.prune.nets import Dense, PaddedShortcut, Transformer, seeded

SHAPE = (3, 8, 8)


def group_named(module: nn.Module, name: str) -> ChannelGroup:
    return next(group for group in analyse(module, SHAPE).groups if group.name == name)


def test_a_group_with_permuted_channels_is_refuted() -> None:
    module = seeded(PaddedShortcut)
    group = group_named(module, "first.conv1")
    reader = next(member for member in group.members if member.axis == "in")
    shifted = replace(reader, channels=reader.channels.roll(1))
    wrong = replace(group, members=tuple(shifted if member is reader else member for member in group.members))
    proof = Proof(module, SHAPE)
    assert proof.sound([group]) == [group]
    assert proof.sound([wrong]) == []


def test_a_group_that_forgets_a_layer_is_refuted() -> None:
    module = seeded(PaddedShortcut)
    group = group_named(module, "first.conv1")
    for forgotten in group.members:
        wrong = replace(group, members=tuple(member for member in group.members if member is not forgotten))
        assert Proof(module, SHAPE).sound([wrong]) == []


def test_one_wrong_group_among_many_is_found() -> None:
    module = seeded(Dense)
    groups = list(analyse(module, SHAPE).groups)
    wrong = replace(groups[1], members=groups[1].members[:1])
    assert Proof(module, SHAPE).sound([groups[0], wrong, *groups[2:]]) == [groups[0], *groups[2:]]


def test_dead_channels_of_the_trained_weights_do_not_hide_a_mistake() -> None:
    module = seeded(PaddedShortcut)
    group = group_named(module, "first.conv1")
    with torch.no_grad():
        module.get_parameter("first.bn2.weight").zero_()
        module.get_parameter("first.bn2.bias").zero_()
    reader = next(member for member in group.members if member.axis == "in")
    shifted = replace(reader, channels=reader.channels.roll(1))
    wrong = replace(group, members=tuple(shifted if member is reader else member for member in group.members))
    assert Proof(module, SHAPE).sound([wrong]) == []


class FixedReshape(nn.Module):
    """Splits its channels by a number written into the code."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.classifier = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        pairs = self.conv(x).mean((2, 3)).reshape(len(x), 4, 2)
        logits: Tensor = self.classifier(pairs.amax(2))
        return logits


def test_a_network_that_cannot_run_after_the_cut_keeps_the_group_whole() -> None:
    assert analyse(seeded(FixedReshape), SHAPE).groups == ()


class FloatConstant(nn.Module):
    """Makes a float32 tensor in its forward pass, so that it cannot run in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.classifier = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.conv(x).relu().flatten(2) @ torch.full((64, 1), 1 / 64)
        logits: Tensor = self.classifier(pooled.flatten(1))
        return logits


def test_a_network_with_float32_constants_is_proved_in_float32() -> None:
    assert [group.name for group in analyse(seeded(FloatConstant), SHAPE).groups] == ["conv"]


class OneImage(nn.Module):
    """Takes a batch of one only."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(3 * 8 * 8, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(x.reshape(1, 3 * 8 * 8))
        return logits


def test_a_network_that_does_not_run_is_named_as_the_reason() -> None:
    with pytest.raises(BuildFailed, match="batch of two random images"):
        Proof(seeded(OneImage), SHAPE)


ANALYSES: dict[type[nn.Module], Analysis] = {}


@settings(max_examples=15, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("kind", [PaddedShortcut, Dense, Transformer])
def test_any_removal_from_proved_groups_computes_what_masking_computes(
    kind: type[nn.Module], data: st.DataObject
) -> None:
    analysis = ANALYSES[kind] = ANALYSES.get(kind) or analyse(seeded(kind), SHAPE)
    removals = []
    for group in analysis.groups:
        units = data.draw(st.sets(st.integers(0, group.units - 1), max_size=group.units - 1))
        if units:
            removals.append((group, torch.tensor(sorted(units))))
    assert analysis.proof.holds(removals)


def test_the_cut_network_trains() -> None:
    module = seeded(Transformer)
    analysis = analyse(module, SHAPE)
    pruned = copy.deepcopy(module)
    remove_channels_(pruned, [(group, torch.arange(group.units // 2)) for group in analysis.groups])
    pruned.train()(torch.randn(2, *SHAPE)).sum().backward()
    assert all(parameter.grad is not None for parameter in pruned.parameters())
    assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in module.parameters()) / 2


def test_code_that_takes_one_width_for_another_is_refuted_although_both_shrink_together() -> None:
    analysis = analyse(seeded(FixedHeads), SHAPE)
    assert {"attn.qkv", "fc2"} <= set(analysis.kept_whole)


def test_a_refuted_group_has_its_reason() -> None:
    module = seeded(PaddedShortcut)
    group = group_named(module, "first.conv1")
    proof = Proof(module, SHAPE)
    reader = next(member for member in group.members if member.axis == "in")
    others = tuple(member for member in group.members if member is not reader)
    proof.sound([replace(group, members=others)])
    assert proof.refuted == {group.name: "the cut network does not run: it fails in a layer of type Conv2d"}
    beyond = replace(reader, channels=reader.channels + 1)
    reason = proof.why_not([(replace(group, members=(*others, beyond)), torch.tensor([group.units - 1]))])
    assert reason == "the cut network cannot be made: the trace names channels that a layer does not have"
    shifted = replace(reader, channels=reader.channels.roll(1))
    reason = proof.why_not([(replace(group, members=(*others, shifted)), torch.tensor([0]))])
    assert reason == "the cut network computes something else than the masked one"
