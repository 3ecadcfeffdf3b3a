"""Costs that are followed in closed form against the network that is cut and counted."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from edgekd.core.cost import OpCost
from edgekd.errors import BuildFailed
from edgekd.nn.channels.analysis import analyse
from edgekd.nn.channels.apply import remove_channels_
from edgekd.nn.channels.groups import ChannelGroup, Member
from edgekd.nn.channels.widths import Corrections, WidthLatency
from edgekd.nn.count import layer_costs
from edgekd.nn.models.repvgg import RepVgg, RepVggSpec
from edgekd.nn.reparam import reparameterised
from edgekd.targets.latency import LatencyModel
from edgekd.testing.toys import toy_cnn
from tests.prune.nets import Dense, PaddedShortcut, Transformer, seeded

SHAPE = (3, 8, 8)
MODEL = LatencyModel(
    target="paper",
    fixed_us=3.0,
    gmacs_per_s={"fp32": 1.0},
    bandwidth_gb_s=2.0,
    efficiency={"other": 0.5},
    overhead_us_per_op=1.0,
    origin="card",
)


def price(cost: OpCost) -> float:
    return MODEL.op_ms(cost, "fp32")


def repvgg() -> nn.Module:
    return RepVgg(RepVggSpec(depths=(2, 2), widths=(8, 8, 16), strides=(1, 1, 2), classes=4)).eval()


@pytest.mark.parametrize(
    "make", [toy_cnn, repvgg, *(lambda kind=kind: seeded(kind) for kind in (Dense, Transformer, PaddedShortcut))]
)
def test_followed_costs_are_those_of_the_network_that_is_cut(make: object) -> None:
    module = make()  # type: ignore[operator]
    groups = analyse(module, SHAPE).groups
    followed = WidthLatency(module, SHAPE, groups, price, corrections=Corrections(fixed_ms=MODEL.fixed_us / 1e3))
    assert followed.now_ms == pytest.approx(MODEL.predict_ms(layer_costs(reparameterised(module), SHAPE), "fp32"))
    cut, removals = copy.deepcopy(module), []
    for index, group in enumerate(groups):
        units = max(1, group.units // 2 - index % 2)
        expected = followed.saved_ms(group, units)
        before = followed.now_ms
        followed.remove(group, units)
        assert followed.now_ms == pytest.approx(before - expected)
        removals.append((group, torch.arange(units)))
    remove_channels_(cut, removals)
    real = layer_costs(reparameterised(cut), SHAPE)
    for found, counted in zip(followed.costs(), real, strict=True):
        assert (found.name, found.kind, found.fused) == (counted.name, counted.kind, counted.fused)
        assert found.macs == counted.macs
        assert found.activations == counted.activations
        assert found.params == pytest.approx(counted.params, rel=0.1, abs=10)
    assert followed.now_ms == pytest.approx(MODEL.predict_ms(real, "fp32"), rel=2e-3)


def test_a_width_between_two_blocks_costs_what_the_next_whole_block_does() -> None:
    module = PaddedShortcut(width=32).eval()
    groups = {group.name: group for group in analyse(module, SHAPE).groups}
    group = groups["first.conv1"]
    by_macs = WidthLatency(module, SHAPE, list(groups.values()), lambda cost: cost.macs / 1e6, block=16)
    whole = by_macs.now_ms
    assert [by_macs.saved_ms(group, units) for units in (1, 8, 15)] == [0.0, 0.0, 0.0]
    exact = WidthLatency(module, SHAPE, list(groups.values()), lambda cost: cost.macs / 1e6)
    assert by_macs.saved_ms(group, 16) == pytest.approx(exact.saved_ms(group, 16))
    assert by_macs.saved_ms(group, 20) == pytest.approx(exact.saved_ms(group, 16))
    assert by_macs.now_ms == whole == pytest.approx(exact.now_ms)


def test_units_that_come_back_restore_the_latency() -> None:
    module = toy_cnn()
    groups = analyse(module, SHAPE).groups
    followed = WidthLatency(module, SHAPE, groups, price)
    whole = followed.now_ms
    for units in (2, 3, -5):
        followed.remove(groups[0], units)
    assert followed.now_ms == pytest.approx(whole)


class Branching(nn.Module):
    """Takes another way when its first layer is narrow."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x))
        return (y if self.first.out_channels == 8 else y.sigmoid()).mean((2, 3))


def test_a_network_that_computes_otherwise_when_it_is_narrow_is_named() -> None:
    every = torch.arange(8)
    group = ChannelGroup(
        name="first",
        units=8,
        width=1,
        members=(Member("first", "out", every, every), Member("second", "in", every, every)),
    )
    with pytest.raises(BuildFailed, match="other operations when first is narrower") as caught:
        WidthLatency(Branching().eval(), SHAPE, [group], price)
    assert caught.value.hint == "set prune.follow=macs"
