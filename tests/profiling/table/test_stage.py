"""The latency-table node, on engines whose times are told to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import edgekd.profiling.table.stage as stage_module
from edgekd.core.blobs import Blobs
from edgekd.core.bundle import ModelBundle
from edgekd.core.events import RecordingReporter
from edgekd.core.packing import packed
from edgekd.core.preprocess import Preprocessing
from edgekd.core.recipe import ModelRecipe
from edgekd.core.report_io import report_from_bundle
from edgekd.core.stage import Context, StageResult
from edgekd.errors import BuildFailed, DeviceUnavailable, EdgekdError
from edgekd.nn.build import module_from_bundle, module_from_recipe
from edgekd.nn.channels.analysis import analyse
from edgekd.nn.save import bundle_from_module
from edgekd.profiling.table.device import Device, Latencies, Time
from edgekd.profiling.table.engines import Workshop
from edgekd.profiling.table.stage import WHOLE, LatencyTableConfig, LatencyTableStage
from edgekd.runtimes.onnx_file import MODEL_FILE, graph_from_file
from edgekd.runtimes.onnx_view import GraphView
from edgekd.targets.latency_table import LatencyTable
from edgekd.targets.schema import Precision, QuantScheme
from edgekd.testing.harness import make_context, make_inputs, run_stage
from tests.gate.results import latency
from tests.profiling.cards import card


def world(folder: Path, *, here: bool = True) -> tuple[Context, ModelBundle]:
    """PaddedShortcut, whose inner groups have 8 and 16 units, and a device."""
    ctx = make_context(folder, resources={"target": card(here=here)})
    recipe = ModelRecipe(
        builder="module:tests.prune.nets:PaddedShortcut", kwargs={}, preprocessing=Preprocessing(size=(8, 8))
    )
    return ctx, bundle_from_module(module_from_recipe(recipe), recipe=recipe, blobs=ctx.blobs, scratch=ctx.scratch)


Fake = Callable[[str], float | EdgekdError]


def by_eight(name: str) -> float:
    """Milliseconds of an engine by its name: the second block's inner group has 16 units, in blocks of 8."""
    return {WHOLE: 9.0, "kind0-12": 9.0, "kind0-4": 6.0}[name]


def run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fake: Fake = by_eight, time: Time | None = None, **config: Any
) -> tuple[StageResult, LatencyTable, Context]:
    """The stage with engines that nobody builds."""

    def told(engines: Mapping[str, ModelBundle], blobs: Blobs) -> tuple[Latencies, tuple[str, ...]]:
        found = {name: fake(name) for name in engines}
        return {n: f if isinstance(f, EdgekdError) else latency(f) for n, f in found.items()}, ("It was cold.",)

    monkeypatch.setattr(stage_module, "device_for", lambda *_: Device(runtime="onnxruntime", time=time or told))
    monkeypatch.setattr(Workshop, "engine", lambda self, groups=(), kept=0: self.bundle)
    ctx, bundle = world(folder)
    given = {"channel_multiple": 4, "engines": 3} | config
    result = run_stage(LatencyTableStage(LatencyTableConfig(**given)), make_inputs(model=bundle), ctx)
    return result, report_from_bundle(result.bundle, LatencyTable, ctx, "x"), ctx


def test_the_table_has_the_stairs_of_the_kinds_that_matter_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, table, ctx = run(tmp_path, monkeypatch)
    assert table.whole.p50_ms == 9.0
    (kind,) = table.kinds
    assert kind.groups == ("second.conv1",)
    assert {width.kept: width.time.p50_ms for width in kind.widths} == {12: 9.0, 4: 6.0}
    assert kind.effective_of(12) == 16.0
    assert kind.effective_of(4) == pytest.approx(4.0, abs=0.1)
    assert table.left_out == ("first.conv1",)
    assert (table.runtime, table.precision, table.target) == ("onnxruntime", "fp32", "toy-board")
    said = " ".join(result.decisions)
    assert "3 FP32 engines were timed by turns in onnxruntime" in said
    assert "second.conv1: of 16 units the edges are 4 (6.00 ms)" in said
    assert "stays predicted: first.conv1" in said
    assert result.decisions[-1] == "It was cold."
    assert result.metrics["engines"] == 3
    assert isinstance(ctx.reporter, RecordingReporter)
    tasks = {str(event["task"]) for event in ctx.reporter.events if event["event"] == "progress"}
    assert {"proving channel groups", "pricing channel groups", "building engines to time"} <= tasks


def test_a_saving_that_only_the_rounds_show_is_an_edge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two percent faster in every round of a run in which each median is known to a tenth."""
    weather = [1.0 + 0.1 * (index * 7919 % 5) for index in range(40)]

    def rounds(name: str) -> list[list[int]]:
        share = {WHOLE: 1.0, "kind0-12": 1.0, "kind0-4": 0.98}[name]
        return [[round(9e6 * share * value)] * 3 for value in weather]

    def time(engines: Mapping[str, ModelBundle], blobs: Blobs) -> tuple[Latencies, tuple[str, ...]]:
        told = {name: packed(rounds(name)) for name in engines}
        return {n: latency(9.0, noise=0.1).model_copy(update={"rounds_packed": r}) for n, r in told.items()}, ()

    _, table, _ = run(tmp_path, monkeypatch, time=time)
    assert {width.kept: width.effective < 16 for width in table.kinds[0].widths} == {12: False, 4: True}


def test_a_kind_that_is_never_faster_is_named_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result, table, _ = run(tmp_path, monkeypatch, lambda name: 9.0)
    assert {width.effective for width in table.kinds[0].widths} == {16.0}
    assert "second.conv1: no width under 16 units is faster." in result.decisions


def test_a_width_that_cannot_be_timed_is_left_out_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails_at_12(name: str) -> float | EdgekdError:
        return BuildFailed("no kernel") if name == "kind0-12" else by_eight(name)

    result, table, _ = run(tmp_path, monkeypatch, fails_at_12)
    assert [width.kept for width in table.kinds[0].widths] == [4]
    assert "second.conv1 at 12 units were not timed: no kernel" in result.decisions
    assert result.metrics["failed"] == 1


def test_without_a_time_of_the_whole_network_there_is_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BuildFailed, match="it crashed"):
        run(tmp_path, monkeypatch, lambda name: BuildFailed("it crashed") if name == WHOLE else 1.0)


def test_without_a_time_of_any_width_there_is_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BuildFailed, match=r"No width of any group could be timed\. second\.conv1 at 12 units"):
        run(tmp_path, monkeypatch, lambda name: 1.0 if name == WHOLE else BuildFailed("it crashed"))


def test_a_network_without_a_narrower_multiple_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BuildFailed, match="none of 2 groups of channels has a narrower width that is a multiple of 64"):
        run(tmp_path, monkeypatch, channel_multiple=64)


def test_a_device_that_is_not_at_hand_is_refused_early(tmp_path: Path) -> None:
    ctx, bundle = world(tmp_path, here=False)
    with pytest.raises(DeviceUnavailable, match="timed on the device, and this machine is not toy-board") as caught:
        LatencyTableStage(LatencyTableConfig()).requires(make_inputs(model=bundle), ctx)
    assert "--device ssh://" in str(caught.value.hint)


@pytest.mark.slow
def test_this_machine_times_a_real_table(tmp_path: Path) -> None:
    ctx, bundle = world(tmp_path)
    config = LatencyTableConfig(channel_multiple=4, engines=3, duration_s=0.05)
    result = run_stage(LatencyTableStage(config), make_inputs(model=bundle), ctx)
    table = report_from_bundle(result.bundle, LatencyTable, ctx, "x")
    assert table.whole.low_ms <= table.whole.p50_ms <= table.whole.high_ms
    assert [width.kept for width in table.kinds[0].widths] == [12, 4]


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "scheme"), [("fp32", None), ("int8", "ort-u8s8")])
def test_an_engine_is_the_cut_network_in_the_form_that_is_deployed(
    tmp_path: Path, precision: Precision, scheme: QuantScheme | None
) -> None:
    ctx, bundle = world(tmp_path)
    module = module_from_bundle(bundle, ctx.blobs)
    group = next(group for group in analyse(module, (3, 8, 8)).groups if group.name == "second.conv1")
    workshop = Workshop(
        module=module, bundle=bundle, precision=precision, scheme=scheme, opset=20, blobs=ctx.blobs, folder=tmp_path
    )
    made = workshop.engine([group], 4)
    assert (made.tags["precision"], made.tags["scheme"]) == (precision, scheme or "")
    view = GraphView(graph_from_file(ctx.path(made, MODEL_FILE)))
    shapes = [shape[:2] for entry in view.constants.values() if len(shape := tuple(entry.dims)) == 4]
    assert sorted(shapes) == [(4, 8), (8, 3), (8, 8), (8, 8), (16, 4)]
    assert any(node.op_type == "DequantizeLinear" for node in view.model.graph.node) == (precision == "int8")
