from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from edgekd.core.bundle import ModelBundle
from edgekd.core.stage import Context, Inputs, StageResult
from edgekd.errors import UserError
from edgekd.nn.build import module_from_bundle
from edgekd.nn.count import count_macs, layer_costs
from edgekd.search.blocks.assemble_stage import AssembleConfig, AssembleStage
from edgekd.search.blocks.library_stage import BlockLibraryConfig, BlockLibraryStage
from edgekd.testing.harness import make_inputs, run_stage
from tests.search.blocks.world import DEVICE, SHORT, context, library, program_bundle, teacher_bundle

SHAPE = (3, 8, 8)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Context, Inputs]:
    """A library that all tests choose from."""
    _, result, ctx = library(tmp_path_factory.mktemp("library"))
    return ctx, make_inputs(teacher=teacher_bundle(ctx), library=result.bundle)


def assemble(made: tuple[Context, Inputs], **config: Any) -> StageResult:
    ctx, inputs = made
    return run_stage(AssembleStage(AssembleConfig(**({"latency_model": DEVICE} | config))), inputs, ctx)


def predicted(bundle: ModelBundle, ctx: Context) -> float:
    return DEVICE.predict_ms(layer_costs(module_from_bundle(bundle, ctx.blobs), SHAPE), "fp32")


def test_the_student_keeps_the_budget_and_is_what_the_metrics_say(made: tuple[Context, Inputs]) -> None:
    ctx, inputs = made
    whole = predicted(inputs.one("teacher"), ctx)
    result = assemble(made, budget_ms=0.5 * whole)
    assert predicted(result.bundle, ctx) <= 0.5 * whole
    assert result.metrics["predicted_ms"] == pytest.approx(predicted(result.bundle, ctx))
    macs = count_macs(module_from_bundle(result.bundle, ctx.blobs), SHAPE)
    assert result.metrics["macs_m"] == pytest.approx(macs / 1e6)
    assert any("diverges least from the teacher" in line for line in result.decisions)


def test_a_larger_budget_never_diverges_more_in_sum(made: tuple[Context, Inputs]) -> None:
    whole = predicted(made[1].one("teacher"), made[0])
    sums = [assemble(made, budget_ms=share * whole, tried=1).metrics["kl_expected"] for share in (0.3, 0.5, 0.8)]
    assert sums == sorted(sums, reverse=True)
    assert sums[-1] < sums[0]


def test_of_several_sets_the_one_that_diverges_least_as_a_whole_goes_on(made: tuple[Context, Inputs]) -> None:
    whole = predicted(made[1].one("teacher"), made[0])
    one, several = (assemble(made, budget_ms=0.5 * whole, tried=tried).metrics for tried in (1, 8))
    assert several["kl"] <= one["kl"]
    assert several["kl_expected"] >= one["kl_expected"] - 1e-9


def test_the_table_names_every_option_and_the_chosen_ones_cover_the_network(made: tuple[Context, Inputs]) -> None:
    rows = assemble(made, teacher_share=0.5).metrics["blocks"]
    assert isinstance(rows, list)
    assert {"keep", "own", "identity", "repvgg", "basic-4"} <= {row["by"] for row in rows}
    chosen = [row for row in rows if row["chosen"]]
    assert chosen[0]["first"] == "stem"
    assert chosen[-1]["last"] == "stages.1.1"
    assert all(row["kl"] == 0 for row in rows if row["by"] == "keep")


def test_blocks_are_not_left_out_side_by_side(made: tuple[Context, Inputs]) -> None:
    whole = predicted(made[1].one("teacher"), made[0])
    for share in (0.3, 0.5, 0.7):
        rows = assemble(made, budget_ms=share * whole).metrics["blocks"]
        assert isinstance(rows, list)
        chosen = [row["by"] for row in rows if row["chosen"]]
        assert ("identity", "identity") not in list(itertools.pairwise(chosen))


def test_the_student_reloads_from_its_recipe(made: tuple[Context, Inputs]) -> None:
    ctx, inputs = made
    result = assemble(made, teacher_share=0.5)
    again = ModelBundle.from_json(result.bundle.to_json())
    images = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    first, second = (module_from_bundle(bundle, ctx.blobs)(images) for bundle in (result.bundle, again))
    assert torch.equal(first, second)
    assert {edit.kind for edit in again.model.edits} == {"replace"}
    assert (again.inputs, again.outputs) == (inputs.one("teacher").inputs, inputs.one("teacher").outputs)


def test_a_program_s_blocks_are_replaced_as_well(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    teacher = program_bundle(ctx, tmp_path)
    config = SHORT | {"families": [{"block": "own", "shortest": 2}]}
    stage = BlockLibraryStage(BlockLibraryConfig.parse(config, "test"))
    made = run_stage(stage, make_inputs(teacher=teacher), ctx)
    result = assemble((ctx, make_inputs(teacher=teacher, library=made.bundle)), teacher_share=0.6)
    assert [edit.kind for edit in result.bundle.model.edits][:2] == ["split", "replace"]
    macs = [count_macs(module_from_bundle(bundle, ctx.blobs), SHAPE) for bundle in (teacher, result.bundle)]
    assert macs[1] < macs[0]


def test_equal_seeds_give_equal_students(made: tuple[Context, Inputs]) -> None:
    first, again = (assemble(made, teacher_share=0.4).bundle.content for _ in range(2))
    assert first == again


def test_under_a_budget_that_the_teacher_keeps_blocks_are_replaced_for_speed(made: tuple[Context, Inputs]) -> None:
    ctx, inputs = made
    result = assemble(made, budget_ms=1e3, teacher_share=0.5)
    assert predicted(result.bundle, ctx) <= 0.5 * predicted(inputs.one("teacher"), ctx)
    assert "The teacher itself is predicted to keep" in result.decisions[0]


def test_without_a_need_nothing_is_replaced(made: tuple[Context, Inputs]) -> None:
    result = assemble(made, teacher_share=1.0)
    assert not result.bundle.model.edits
    assert result.metrics["kl"] == 0
    assert any("No block had to be replaced" in line for line in result.decisions)


def test_under_a_budget_out_of_reach_the_cheapest_set_goes_on_with_the_reason(made: tuple[Context, Inputs]) -> None:
    result = assemble(made, budget_ms=1e-6)
    assert "the fastest one is predicted to take" in result.decisions[0]
    rows = result.metrics["blocks"]
    assert isinstance(rows, list)
    cheapest = assemble(made, budget_ms=1.001 * float(str(result.metrics["predicted_ms"]))).metrics["predicted_ms"]
    assert cheapest == pytest.approx(result.metrics["predicted_ms"])


def test_an_empty_library_leaves_the_teacher_with_the_reason(tmp_path: Path) -> None:
    _, made, ctx = library(tmp_path, time_limit_s=1e-6)
    inputs = make_inputs(teacher=teacher_bundle(ctx), library=made.bundle)
    result = assemble((ctx, inputs), budget_ms=1e-3)
    assert not result.bundle.model.edits
    assert "No student of the space 'blocks' keeps" in result.decisions[0]


def test_without_a_latency_model_multiply_accumulates_are_limited(made: tuple[Context, Inputs]) -> None:
    ctx, inputs = made
    result = assemble(made, latency_model=None, teacher_share=0.5)
    macs = [count_macs(module_from_bundle(b, ctx.blobs), SHAPE) for b in (inputs.one("teacher"), result.bundle)]
    assert macs[1] <= 0.5 * macs[0]
    assert "predicted_ms" not in result.metrics


def test_a_budget_without_a_latency_model_is_refused(made: tuple[Context, Inputs]) -> None:
    with pytest.raises(UserError, match="needs a latency model"):
        assemble(made, latency_model=None, budget_ms=1.0)
