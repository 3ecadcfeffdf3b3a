"""Cuts along a latency table: where they end, what they leave alone, several rounds, and tables that do not fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from edgekd.core.bundle import ModelBundle
from edgekd.core.preprocess import Preprocessing
from edgekd.core.recipe import ModelRecipe
from edgekd.core.report_io import bundle_from_report
from edgekd.core.stage import Context, StageResult
from edgekd.errors import BuildFailed, UserError
from edgekd.nn.build import module_from_bundle, module_from_recipe
from edgekd.nn.save import bundle_from_module
from edgekd.prune.config import PruneConfig
from edgekd.prune.stage import PruneStage
from edgekd.targets.latency_table import LatencyTable
from edgekd.testing.harness import make_context, make_inputs, run_stage
from tests.prune.blocks import Planted, edges_of

INNER = ("first.conv1", "second.conv1", "third.conv1")


def whole(ctx: Context) -> ModelBundle:
    recipe = ModelRecipe(
        builder="module:tests.prune.blocks:PaddedBlocks", kwargs={}, preprocessing=Preprocessing(size=(8, 8))
    )
    return bundle_from_module(module_from_recipe(recipe), recipe=recipe, blobs=ctx.blobs, scratch=ctx.scratch)


def cut(ctx: Context, model: ModelBundle, table: LatencyTable | None, **config: Any) -> StageResult:
    given = {"macs_keep": 0.6, "channel_multiple": 8, "follow": "measured", "importance": "lamp"} | config
    ports = {"model": model}
    if table is not None:
        ports["latency_table"] = bundle_from_report(table, ctx)
    return run_stage(PruneStage(PruneConfig(**given)), make_inputs(**ports), ctx)


def widths_of(result: StageResult, ctx: Context) -> dict[str, int]:
    module = module_from_bundle(result.bundle, ctx.blobs)
    found = {}
    for name in INNER:
        layer = module.get_submodule(name)
        assert isinstance(layer, nn.Conv2d)
        found[name] = layer.out_channels
    return found


def test_a_cut_ends_at_the_edges_that_were_measured(tmp_path: Path) -> None:
    device = Planted(stairs={"first": edges_of(16), "second": edges_of(16), "third": edges_of(32)})
    ctx = make_context(tmp_path)
    result = cut(ctx, whole(ctx), device.table())
    found = widths_of(result, ctx)
    assert found != dict(zip(INNER, (64, 64, 128), strict=True))
    assert all(found[name] % edge == 0 for name, edge in zip(INNER, (16, 16, 32), strict=True))
    assert result.metrics["predicted_before_ms"] == pytest.approx(device.time().p50_ms, rel=1e-6)
    assert result.metrics["predicted_ms"] == pytest.approx(truth(device, found), rel=0.02)


def truth(device: Planted, widths: Mapping[str, int]) -> float:
    """What the device takes."""
    for group in device.groups:
        device.truth.remove(group, group.units - widths[group.name])
    taken = device.truth.now_ms
    device.truth.reset()
    return taken


def test_groups_that_never_make_the_engine_faster_are_left_alone(tmp_path: Path) -> None:
    device = Planted(stairs={"third": lambda kept: 128})
    ctx = make_context(tmp_path)
    result = cut(ctx, whole(ctx), device.table(), macs_keep=0.3)
    found = widths_of(result, ctx)
    assert found["third.conv1"] == 128
    assert max(found["first.conv1"], found["second.conv1"]) < 64
    assert any("no further cut was measured to make the engine faster" in line for line in result.decisions)


def test_a_width_at_which_the_engine_gets_slower_is_jumped_over(tmp_path: Path) -> None:
    """62 of 64 channels take longer than 64; without the rise, a cut this shallow ends there."""
    rising = Planted(stairs=dict.fromkeys(("first", "second"), lambda kept: 80 if kept == 62 else kept))
    ctx = make_context(tmp_path)
    shallow = {"channel_multiple": 2, "macs_keep": 0.99}
    even, slow = (device.table(multiple=2, only=lambda kept: kept in (62, 60, 56)) for device in (Planted(), rising))
    plain, found = (widths_of(cut(ctx, whole(ctx), table, **shallow), ctx) for table in (even, slow))
    assert 62 in (plain["first.conv1"], plain["second.conv1"])
    assert 62 not in (found["first.conv1"], found["second.conv1"])


def test_a_budget_is_kept_by_the_latency_of_the_table(tmp_path: Path) -> None:
    device = Planted(stairs={"third": edges_of(32)})
    ctx = make_context(tmp_path)
    goal = 0.6 * device.time().p50_ms
    result = cut(ctx, whole(ctx), device.table(), macs_keep=0.95, budget_ms=goal)
    assert truth(device, widths_of(result, ctx)) <= 1.01 * goal
    assert "of the latency table keeps the budget" in result.decisions[0]


def test_a_budget_out_of_reach_says_what_the_table_gives(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    result = cut(ctx, whole(ctx), Planted().table(), macs_keep=0.9, budget_ms=1e-6, macs_floor=0.1)
    assert "of the latency table, more than" in result.decisions[0]
    assert "would take a" not in result.decisions[0]


def test_a_second_round_goes_on_with_the_table_of_the_whole_network(tmp_path: Path) -> None:
    """Names and widths stay valid, and what is left is predicted from what was measured before the first cut."""
    device = Planted(stairs={"first": edges_of(16), "second": edges_of(16), "third": edges_of(32)})
    ctx = make_context(tmp_path)
    table = device.table()
    once = cut(ctx, whole(ctx), table, macs_keep=0.75)
    twice = cut(ctx, once.bundle, table, macs_keep=0.75)
    before, after = widths_of(once, ctx), widths_of(twice, ctx)
    assert before != after
    assert all(after[name] <= before[name] for name in INNER)
    assert all(after[name] % edge == 0 for name, edge in zip(INNER, (16, 16, 32), strict=True))
    assert twice.metrics["predicted_before_ms"] == pytest.approx(once.metrics["predicted_ms"], rel=1e-3)
    assert twice.metrics["predicted_ms"] == pytest.approx(truth(device, after), rel=0.02)


def test_groups_that_were_not_timed_keep_the_stairs_that_are_assumed(tmp_path: Path) -> None:
    table = Planted().table()
    few = table.model_copy(update={"kinds": table.kinds[:1], "left_out": ("third.conv1",)})
    ctx = make_context(tmp_path)
    found = widths_of(cut(ctx, whole(ctx), few, macs_keep=0.4, kernel_block=32), ctx)
    assert found["third.conv1"] < 128
    assert found["third.conv1"] % 32 == 0


def test_following_a_table_without_one_is_refused(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    with pytest.raises(UserError, match="needs a latency table of this network, and has none") as caught:
        cut(ctx, whole(ctx), None)
    assert "latency-table" in str(caught.value.hint)


def test_a_table_of_another_precision_is_refused(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    with pytest.raises(UserError, match="table is of FP32 engines, but the pruned network is to be deployed in INT8"):
        cut(ctx, whole(ctx), Planted().table(), precision="int8")


def test_a_table_of_another_network_is_refused(tmp_path: Path) -> None:
    table = Planted().table()
    strange = table.kinds[0].model_copy(update={"groups": ("elsewhere",)})
    ctx = make_context(tmp_path)
    with pytest.raises(BuildFailed, match="another network: none of the groups"):
        cut(ctx, whole(ctx), table.model_copy(update={"kinds": (strange,)}))


def test_a_table_of_the_network_after_a_cut_is_refused_for_the_wider_one(tmp_path: Path) -> None:
    table = Planted().table()
    narrow = table.kinds[0].model_copy(update={"units": 32, "widths": table.kinds[0].widths[-1:]})
    ctx = make_context(tmp_path)
    with pytest.raises(BuildFailed, match=r"first\.conv1 has 64 units, more than were timed") as caught:
        cut(ctx, whole(ctx), table.model_copy(update={"kinds": (narrow,)}))
    assert "before its first cut" in str(caught.value.hint)
