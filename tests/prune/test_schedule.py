from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from edgekd.nn.channels.analysis import analyse
from edgekd.nn.channels.apply import Removal, remove_channels_
from edgekd.nn.channels.ends import LEAST_KEPT
from edgekd.nn.channels.importance import unit_sums
from edgekd.nn.count import count_macs, layer_costs
from edgekd.prune.schedule import MacModel, plan_removals
from edgekd.testing.toys import toy_cnn
from tests.prune.nets import Dense, PaddedShortcut, Transformer, seeded

SHAPE = (3, 8, 8)


def wide() -> nn.Module:
    return PaddedShortcut(width=32).eval()


def plan(module: nn.Module, keep: float, *, multiple: int = 1, across: bool = False) -> tuple[list[Removal], MacModel]:
    groups = analyse(module, SHAPE).groups
    macs = MacModel(module, layer_costs(module, SHAPE), groups)
    scores = {group.name: unit_sums(module, group, "l2") for group in groups}
    removals = plan_removals(groups, scores, macs, target=keep * macs.total, multiple=multiple, across=across)
    return removals, macs


@pytest.mark.parametrize("make", [toy_cnn, wide, lambda: seeded(Dense), lambda: seeded(Transformer)])
@pytest.mark.parametrize("across", [False, True])
def test_the_plan_predicts_the_multiply_accumulates_that_are_counted(make: object, across: bool) -> None:
    module = make()  # type: ignore[operator]
    removals, macs = plan(module, 0.6, across=across)
    pruned = copy.deepcopy(module)
    remove_channels_(pruned, removals)
    assert macs.total == count_macs(module, SHAPE)
    assert macs.now == pytest.approx(count_macs(pruned, SHAPE))
    assert macs.now <= 0.6 * macs.total


def test_removing_and_bringing_back_restores_the_count() -> None:
    module = wide()
    groups = analyse(module, SHAPE).groups
    macs = MacModel(module, layer_costs(module, SHAPE), groups)
    for units in (5, 7, -12):
        macs.remove(groups[0], units)
    assert macs.now == pytest.approx(macs.total)


@pytest.mark.parametrize("multiple", [2, 4, 8])
def test_widths_that_shrink_end_at_the_multiple(multiple: int) -> None:
    removals, _ = plan(wide(), 0.7, multiple=multiple)
    assert removals
    assert all((group.units - len(units)) % multiple == 0 for group, units in removals)


def test_no_chunk_could_stay_without_missing_the_target() -> None:
    multiple, keep = 4, 0.7
    removals, macs = plan(wide(), keep, multiple=multiple)
    for group, _ in removals:
        macs.remove(group, -multiple)
        assert macs.now > keep * macs.total
        macs.remove(group, multiple)


def test_the_least_important_units_leave() -> None:
    module = wide()
    removals, _ = plan(module, 0.7)
    for group, units in removals:
        scores = unit_sums(module, group, "l2")
        kept = scores[~torch.isin(torch.arange(group.units), units)]
        assert scores[units].max() <= kept.min()


def test_a_uniform_plan_takes_about_the_same_share_everywhere() -> None:
    removals, _ = plan(wide(), 0.7)
    shares = [len(units) / group.units for group, units in removals]
    assert max(shares) - min(shares) < 0.05


def test_a_global_plan_takes_more_where_the_weights_are_uneven() -> None:
    module = wide()
    with torch.no_grad():
        module.get_parameter("first.conv1.weight")[:24] *= 1e-3
        module.get_submodule("first.conv2").weight[:, :24] *= 1e-3  # type: ignore[operator]
    cut_by = {across: {group.name for group, _ in plan(module, 0.8, across=across)[0]} for across in (False, True)}
    assert cut_by == {False: {"first.conv1", "second.conv1"}, True: {"first.conv1"}}


def test_every_group_keeps_something_when_the_target_is_out_of_reach() -> None:
    removals, macs = plan(wide(), 0.01)
    assert macs.now > 0.01 * macs.total
    assert all(group.units - len(units) >= LEAST_KEPT * group.units for group, units in removals)


def test_heads_are_counted_with_the_products_of_attention() -> None:
    module = seeded(Transformer)
    removals, macs = plan(module, 0.45)
    assert "attn.qkv" in {group.name for group, _ in removals}
    pruned = copy.deepcopy(module)
    remove_channels_(pruned, removals)
    assert macs.now == pytest.approx(count_macs(pruned, SHAPE))
