from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekd.nn.channels.groups import ChannelGroup, Member
from edgekd.nn.channels.importance import WeightNorm, has_scale, unit_sums


def network() -> nn.Module:
    """Two channels: conv weights 1 and 3, BatchNorm scales -2 and 1, reading weights 2 and 0."""
    conv, bn, reader = nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Linear(2, 1)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([1.0, -3.0]).reshape(2, 1, 1, 1))
        bn.weight.copy_(torch.tensor([-2.0, 1.0]))
        reader.weight.copy_(torch.tensor([[2.0, 0.0]]))
    return nn.ModuleDict({"conv": conv, "bn": bn, "reader": reader})


def group(*paths: str) -> ChannelGroup:
    both = torch.arange(2)
    members = [Member(path, "in" if path == "reader" else "out", both, both) for path in paths]
    return ChannelGroup(name="conv", units=2, width=1, members=tuple(members))


@pytest.mark.parametrize(
    ("norm", "sums"),
    [("l2", (1 + 4, 9 + 0)), ("l1", (1 + 2, 3 + 0)), ("bn", (2, 1))],
)
def test_sums_run_over_all_members(norm: WeightNorm, sums: tuple[int, int]) -> None:
    assert unit_sums(network(), group("conv", "bn", "reader"), norm).tolist() == pytest.approx(list(sums))


def test_a_group_without_batchnorm_falls_back_to_l2() -> None:
    plain = group("conv", "reader")
    assert not has_scale(network(), plain)
    assert torch.equal(unit_sums(network(), plain, "bn"), unit_sums(network(), plain, "l2"))


def test_all_channels_of_a_unit_count() -> None:
    module = nn.ModuleDict({"fc": nn.Linear(1, 4)})
    with torch.no_grad():
        module["fc"].weight.copy_(torch.tensor([[1.0], [2.0], [3.0], [5.0]]))
    pairs = Member("fc", "out", torch.tensor([0, 1, 0, 1]), torch.arange(4))
    scores = unit_sums(module, ChannelGroup(name="fc", units=2, width=2, members=(pairs,)), "l1")
    assert scores.tolist() == pytest.approx([4, 7])


def test_dead_weights_sum_to_zero() -> None:
    module = network()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert unit_sums(module, group("conv", "reader"), "l2").tolist() == [0.0, 0.0]
