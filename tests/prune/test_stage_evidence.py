"""The prune stage with importances that look at images, labels or a teacher, and along the latency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from edgekd.core.bundle import ModelBundle
from edgekd.core.graph import Graph, Node
from edgekd.core.runner import Runner, RunSettings
from edgekd.core.stage import Context, StageResult
from edgekd.core.store import MemoryStore
from edgekd.errors import UserError
from edgekd.nn.build import module_from_bundle
from edgekd.nn.count import layer_costs
from edgekd.nn.reparam import reparameterised
from edgekd.pipeline.stages import STAGES
from edgekd.prune.config import PruneConfig
from edgekd.prune.stage import PruneStage
from edgekd.targets.latency import LatencyModel
from edgekd.testing.harness import make_context, make_inputs, run_stage
from edgekd.testing.toy_data import toy_dataset
from edgekd.testing.toys import toy_bundle

MODEL = LatencyModel(
    target="paper",
    gmacs_per_s={"fp32": 1.0},
    bandwidth_gb_s=1.0,
    efficiency={"other": 1.0},
    overhead_us_per_op=0.1,
    origin="card",
)
SHAPE = (3, 8, 8)


def context(folder: Path, *, labelled: bool = True) -> Context:
    return make_context(folder, resources={"data": toy_dataset(labelled=labelled)})


def prune(ctx: Context, *, teacher: ModelBundle | None = None, **config: Any) -> StageResult:
    model = toy_bundle(ctx.blobs, ctx.scratch)
    ports = {"model": model} | ({"teacher": teacher} if teacher else {})
    stage = PruneStage(PruneConfig(**({"macs_keep": 0.6, "channel_multiple": 2} | config)))
    return run_stage(stage, make_inputs(**ports), ctx)


@pytest.mark.parametrize("importance", ["taylor", "fisher", "flap"])
def test_an_importance_that_looks_at_images_takes_them_from_the_training_split(tmp_path: Path, importance: str) -> None:
    result = prune(context(tmp_path), importance=importance, importance_images=16)
    assert result.metrics["macs_kept"] <= 0.6  # type: ignore[operator]
    assert any("looked at 16 of" in line and "training images of toy" in line for line in result.decisions)
    assert any(f"ranked by {importance}" in line for line in result.decisions)


def test_a_network_is_ranked_by_what_hurts_the_match_with_its_teacher(tmp_path: Path) -> None:
    ctx = context(tmp_path, labelled=False)
    teacher = toy_bundle(ctx.blobs, ctx.scratch)
    own = prune(ctx, teacher=teacher, importance="kd")
    other = prune(ctx, teacher=toy_bundle(ctx.blobs, ctx.scratch, seed=3), importance="kd")
    assert own.bundle.content != other.bundle.content
    assert own.bundle.content == prune(ctx, teacher=teacher, importance="kd").bundle.content


def test_labels_that_the_data_does_not_have_are_asked_for_early(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="importance 'taylor' needs labels, and the data has none") as caught:
        prune(context(tmp_path, labelled=False), importance="taylor")
    assert "kd" in str(caught.value.hint)
    assert "fisher" not in str(caught.value.hint)


def test_a_teacher_that_is_not_connected_is_asked_for_early(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'kd' compares with a teacher, and the port 'teacher' is not connected"):
        prune(context(tmp_path), importance="kd")


def test_a_teacher_of_other_classes_is_refused(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    with pytest.raises(UserError, match="The student has 4 classes and the teacher 5"):
        prune(ctx, teacher=toy_bundle(ctx.blobs, ctx.scratch, classes=5), importance="kd")


def test_a_teacher_that_sees_other_pixels_is_refused(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    with pytest.raises(UserError, match="must see the same tensor"):
        prune(ctx, teacher=toy_bundle(ctx.blobs, ctx.scratch, size=16), importance="kd")


def test_an_unknown_importance_is_refused_with_the_near_one() -> None:
    with pytest.raises(UserError, match="no such importance; Did you mean 'fisher'"):
        PruneConfig.parse({"macs_keep": 0.5, "importance": "fischer"}, "node")


def test_data_is_part_of_the_key_only_where_the_importance_looks_at_it(tmp_path: Path) -> None:
    store = MemoryStore(tmp_path)
    model = toy_bundle(store.blobs, tmp_path)

    def keys(importance: str, seed: int) -> str:
        node = Node(
            name="cut",
            stage="prune",
            config={"macs_keep": 0.6, "channel_multiple": 2, "importance": importance},
            inputs={"model": ("@model",)},
        )
        graph = Graph(inputs={"model": model.kind}, nodes=(node,))
        settings = RunSettings(resources={"data": toy_dataset(seed=seed)})
        return str(Runner(STAGES, store).plan(graph, {"model": model}, settings).decision("cut").key)

    assert keys("l2", 0) == keys("l2", 1)
    assert keys("fisher", 0) != keys("fisher", 1)


def test_a_network_without_images_is_cut_in_a_run_without_data(tmp_path: Path) -> None:
    store = MemoryStore(tmp_path)
    model = toy_bundle(store.blobs, tmp_path)
    config = {"macs_keep": 0.6, "channel_multiple": 2}
    node = Node(name="cut", stage="prune", config=config, inputs={"model": ("@model",)})
    graph = Graph(inputs={"model": model.kind}, nodes=(node,))
    report = Runner(STAGES, store).run(graph, {"model": model}, RunSettings())
    assert report.node("cut").metrics["macs_kept"] <= 0.6  # type: ignore[operator]


def predicted(bundle: ModelBundle, ctx: Context) -> float:
    return MODEL.predict_ms(layer_costs(reparameterised(module_from_bundle(bundle, ctx.blobs)), SHAPE), "fp32")


@pytest.mark.parametrize("importance", ["l2", "fisher"])
def test_along_the_latency_the_budget_is_kept_and_no_more_importance_is_lost_than_by_macs(
    tmp_path: Path, importance: str
) -> None:
    ctx = context(tmp_path)
    whole = predicted(toy_bundle(ctx.blobs, ctx.scratch), ctx)
    asked: dict[str, Any] = {
        "macs_keep": 0.95, "budget_ms": 0.75 * whole, "latency_model": MODEL, "importance": importance
    }  # fmt: skip
    fast = prune(ctx, follow="latency", **asked)
    plain = prune(ctx, follow="macs", scope="global", **asked)
    assert predicted(fast.bundle, ctx) <= 0.75 * whole
    assert fast.metrics["predicted_ms"] == pytest.approx(predicted(fast.bundle, ctx))
    assert fast.metrics["predicted_before_ms"] == pytest.approx(whole)
    assert fast.metrics["importance_lost"] <= plain.metrics["importance_lost"] + 1e-9  # type: ignore[operator]
    assert "per millisecond" in fast.decisions[0]
    assert any("say little of how groups compare" in line for line in fast.decisions) == (importance == "l2")


def test_a_round_goes_its_share_of_the_way(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    whole = predicted(toy_bundle(ctx.blobs, ctx.scratch), ctx)
    asked: dict[str, Any] = {"macs_keep": 0.99, "follow": "latency", "latency_model": MODEL, "channel_multiple": 1}
    result = prune(ctx, budget_ms=0.5 * whole, rounds_left=2, **asked)
    assert 0.6 * whole < predicted(result.bundle, ctx) <= 0.5**0.5 * whole
    assert "this round's goal" in result.decisions[0]


def test_a_budget_below_the_floor_is_said_to_be_out_of_reach(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    whole = predicted(toy_bundle(ctx.blobs, ctx.scratch), ctx)
    result = prune(ctx, macs_keep=0.9, macs_floor=0.7, budget_ms=0.4 * whole, follow="latency", latency_model=MODEL)
    assert "90.0 % are kept" in result.decisions[0]
    assert result.metrics["macs_kept"] > 0.7  # type: ignore[operator]


def test_a_cut_ends_where_nothing_more_makes_the_engine_faster(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"follow": "latency", "latency_model": MODEL, "kernel_block": 8, "importance": "fisher"}
    result = prune(context(tmp_path), macs_keep=0.2, **asked)
    widths = [p.out_channels for p in module_from_bundle(result.bundle, context(tmp_path).blobs).modules()
              if isinstance(p, nn.Conv2d)]  # fmt: skip
    assert set(widths) <= {8, 16}
    assert "no further cut is predicted to make the engine faster" in result.decisions[0]
    assert result.metrics["macs_kept"] > 0.2  # type: ignore[operator]


def test_following_the_latency_without_a_model_of_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="along the latency needs a latency model"):
        prune(context(tmp_path), follow="latency")
