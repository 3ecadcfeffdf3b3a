"""A teacher with blocks to replace, a device, and the two stages on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekd.core.bundle import ModelBundle
from edgekd.core.report_io import report_from_bundle
from edgekd.core.stage import Context, StageResult
from edgekd.nn.build import module_from_bundle, module_from_recipe
from edgekd.nn.load import load_model
from edgekd.nn.save import bundle_from_module
from edgekd.search.blocks.library_stage import BlockLibraryConfig, BlockLibraryStage
from edgekd.search.blocks.report import LibraryReport
from edgekd.targets.latency import LatencyModel
from edgekd.testing.harness import make_context, make_inputs, run_stage
from edgekd.testing.toy_data import toy_dataset
from edgekd.testing.toys import toy_recipe
from tests.nn.zoo import exported, images, saved

RECIPE = toy_recipe().model_copy(
    update={"kwargs": {"depths": [3, 2], "widths": [8, 8, 16], "classes": 4, "in_channels": 3}}
)
SHORT = {"images": 32, "held_out": 16, "training": {"epochs": 1, "batch_size": 16}, "channel_multiple": 4}
DEVICE = LatencyModel(
    target="toy",
    overhead_us_per_op=10,
    gmacs_per_s={"fp32": 1.0},
    efficiency={"other": 1.0},
    bandwidth_gb_s=1000,
    origin="fitted",
)
"""1 ms for a million multiply-accumulates and 0.01 ms per operation."""


def context(folder: Path, seed: int = 0) -> Context:
    return make_context(folder, seed=seed, resources={"data": toy_dataset()})


def teacher_bundle(ctx: Context) -> ModelBundle:
    return bundle_from_module(module_from_recipe(RECIPE), recipe=RECIPE, blobs=ctx.blobs, scratch=ctx.scratch)


def program_bundle(ctx: Context, folder: Path) -> ModelBundle:
    """The same teacher as a user's torch.export program: a flat graph."""
    module = module_from_bundle(teacher_bundle(ctx), ctx.blobs)
    path = saved(exported(module, images(2)), folder / "teacher.pt2")
    return load_model(path, preprocessing=RECIPE.preprocessing, blobs=ctx.blobs, scratch=ctx.scratch).bundle


def library(folder: Path, **config: Any) -> tuple[LibraryReport, StageResult, Context]:
    """A library of the teacher, with short settings."""
    ctx = context(folder)
    stage = BlockLibraryStage(BlockLibraryConfig.parse(SHORT | config, "test"))
    result = run_stage(stage, make_inputs(teacher=teacher_bundle(ctx)), ctx)
    return report_from_bundle(result.bundle, LibraryReport, ctx, "library"), result, ctx
