from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgekd.core.blobs import FolderBlobs
from edgekd.core.bundle import ModelBundle
from edgekd.core.preprocess import Preprocessing
from edgekd.core.recipe import ModelRecipe
from edgekd.core.stage import Context, StageResult
from edgekd.errors import BuildFailed, UserError
from edgekd.nn.build import module_from_bundle, module_from_recipe
from edgekd.nn.count import count_macs, layer_costs
from edgekd.nn.load import load_model
from edgekd.nn.save import bundle_from_module
from edgekd.prune.config import PruneConfig
from edgekd.prune.stage import PruneStage
from edgekd.targets.latency import LatencyModel
from edgekd.testing.harness import make_context, make_inputs, run_stage
from tests.prune.nets import PaddedShortcut, seeded

KWARGS = {"depths": [1, 2], "widths": [16, 16, 32], "classes": 4, "in_channels": 3}
RESIDUAL = "edgekd:residual"
PADDED = "module:tests.prune.nets:PaddedShortcut"


def recipe(builder: str = RESIDUAL, kwargs: dict[str, Any] | None = None, side: int = 8) -> ModelRecipe:
    return ModelRecipe(builder=builder, kwargs=kwargs or {}, preprocessing=Preprocessing(size=(side, side)))


def bundle_of(ctx: Context, made: ModelRecipe) -> ModelBundle:
    return bundle_from_module(module_from_recipe(made), recipe=made, blobs=ctx.blobs, scratch=ctx.scratch)


def prune(folder: Path, made: ModelRecipe | None = None, **config: Any) -> tuple[ModelBundle, StageResult, Context]:
    ctx = make_context(folder)
    before = bundle_of(ctx, made or recipe(kwargs=KWARGS))
    stage = PruneStage(PruneConfig(**({"macs_keep": 0.5, "channel_multiple": 4} | config)))
    return before, run_stage(stage, make_inputs(model=before), ctx), ctx


@pytest.mark.parametrize("scope", ["uniform", "global"])
@pytest.mark.parametrize("importance", ["l2", "l1", "bn"])
def test_the_asked_share_remains_and_the_specs_stay(tmp_path: Path, scope: str, importance: str) -> None:
    before, result, ctx = prune(tmp_path, scope=scope, importance=importance)
    macs = [count_macs(module_from_bundle(bundle, ctx.blobs), (3, 8, 8)) for bundle in (before, result.bundle)]
    assert 0.4 < macs[1] / macs[0] <= 0.5
    assert result.metrics["macs_m"] == pytest.approx(macs[1] / 1e6)
    assert result.metrics["macs_kept"] == pytest.approx(macs[1] / macs[0])
    assert (result.bundle.inputs, result.bundle.outputs) == (before.inputs, before.outputs)


MODEL = LatencyModel(
    target="paper",
    gmacs_per_s={"fp32": 1.0},
    bandwidth_gb_s=1000.0,
    efficiency={"other": 1.0},
    overhead_us_per_op=0.0,
    origin="card",
)
"""One microsecond per thousand multiply-accumulates, nothing else."""


def test_a_budget_cuts_on_until_the_prediction_keeps_it(tmp_path: Path) -> None:
    before, loose, ctx = prune(tmp_path, macs_keep=0.9)
    whole = MODEL.predict_ms(layer_costs(module_from_bundle(before, ctx.blobs), (3, 8, 8)), "fp32")
    _, tight, _ = prune(tmp_path, macs_keep=0.9, budget_ms=0.5 * whole, latency_model=MODEL)
    module = module_from_bundle(tight.bundle, ctx.blobs)
    assert MODEL.predict_ms(layer_costs(module, (3, 8, 8)), "fp32") <= 0.5 * whole
    assert count_macs(module, (3, 8, 8)) < count_macs(module_from_bundle(loose.bundle, ctx.blobs), (3, 8, 8))
    assert "keeps the budget" in tight.decisions[0]


def test_a_budget_out_of_reach_costs_no_accuracy_and_says_so(tmp_path: Path) -> None:
    _, plain, _ = prune(tmp_path, macs_keep=0.9)
    _, result, _ = prune(tmp_path, macs_keep=0.9, budget_ms=1e-9, latency_model=MODEL, macs_floor=0.5)
    assert "90.0 % are kept" in result.decisions[0]
    assert result.bundle.content == plain.bundle.content


def test_a_budget_without_a_latency_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs a latency model"):
        prune(tmp_path, budget_ms=1.0)


def test_every_width_is_a_multiple(tmp_path: Path) -> None:
    _, result, ctx = prune(tmp_path, channel_multiple=8, macs_keep=0.6)
    module = module_from_bundle(result.bundle, ctx.blobs)
    widths = [part.out_channels for part in module.modules() if isinstance(part, nn.Conv2d)]
    assert all(width % 8 == 0 for width in widths)
    assert sum(widths) < 16 * 3 + 32 * 5


def test_padded_shortcuts_reach_the_target_through_inner_channels(tmp_path: Path) -> None:
    _, result, ctx = prune(tmp_path, recipe(PADDED), macs_keep=0.6, channel_multiple=1)
    module = module_from_bundle(result.bundle, ctx.blobs)
    assert module.get_submodule("first.conv2").out_channels == 8
    assert module.get_submodule("first.conv1").out_channels < 8
    assert any("Kept whole: stem" in line for line in result.decisions)


def test_a_pruned_model_reloads_bit_for_bit_without_the_pruner(tmp_path: Path) -> None:
    _, result, ctx = prune(tmp_path, recipe("module:tests.prune.nets:Transformer"), channel_multiple=1)
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.save(module_from_bundle(result.bundle, ctx.blobs)(images).detach(), tmp_path / "expected.pt")
    (tmp_path / "bundle.json").write_text(result.bundle.to_json())
    code = f"""
import sys, torch
sys.modules["torch_pruning"] = None
from pathlib import Path
from edgekd.core.blobs import FolderBlobs
from edgekd.core.bundle import ModelBundle
from edgekd.nn.build import module_from_bundle
root = Path({str(tmp_path)!r})
module = module_from_bundle(ModelBundle.from_json((root / "bundle.json").read_text()), FolderBlobs(root / "blobs"))
images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
assert torch.equal(module(images), torch.load(root / "expected.pt", weights_only=True))
assert "edgekd.prune" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_equal_inputs_give_equal_content(tmp_path: Path) -> None:
    assert prune(tmp_path / "a")[1].bundle.content == prune(tmp_path / "b")[1].bundle.content


def test_a_pruned_model_can_be_pruned_again(tmp_path: Path) -> None:
    _, once, ctx = prune(tmp_path, macs_keep=0.7)
    twice = run_stage(PruneStage(PruneConfig(macs_keep=0.7, channel_multiple=4)), make_inputs(model=once.bundle), ctx)
    assert len(twice.bundle.model.edits) == 2
    assert twice.metrics["macs_before_m"] == once.metrics["macs_m"]


def test_a_multiple_that_leaves_too_little_to_cut_is_halved_and_reported(tmp_path: Path) -> None:
    _, result, _ = prune(tmp_path, channel_multiple=16, macs_keep=0.3)
    assert any("multiples of 8, not 16" in line or "multiples of 4, not 16" in line for line in result.decisions)


def test_a_share_out_of_reach_is_refused_with_the_one_in_reach(tmp_path: Path) -> None:
    with pytest.raises(BuildFailed, match=r"cannot keep as little as 5\.0 %") as caught:
        prune(tmp_path, recipe(PADDED), macs_keep=0.05)
    assert caught.value.hint is not None
    assert "ask for macs_keep 0." in caught.value.hint
    assert "Kept whole: stem" in caught.value.message


def test_a_budget_below_the_reach_of_the_groups_falls_back_to_the_share_that_was_asked_for(tmp_path: Path) -> None:
    # The groups of this network end at 21 %, above the floor.
    _, plain, _ = prune(tmp_path / "plain", recipe(PADDED), macs_keep=0.7)
    _, result, _ = prune(
        tmp_path / "tight", recipe(PADDED), macs_keep=0.7, budget_ms=1e-9, latency_model=MODEL, macs_floor=0.1
    )
    assert "70.0 % are kept" in result.decisions[0]
    assert result.bundle.content == plain.bundle.content


def test_the_deepest_cut_is_tried_against_the_budget_too(tmp_path: Path) -> None:
    with pytest.raises(BuildFailed) as caught:
        prune(tmp_path / "deepest", recipe(PADDED), macs_keep=0.05)
    reach = float(str(caught.value.hint).split()[3])
    before, *_ = prune(tmp_path / "whole", recipe(PADDED), macs_keep=0.9)
    whole = MODEL.predict_ms(layer_costs(module_from_recipe(before.model), (3, 8, 8)), "fp32")
    _, result, _ = prune(
        tmp_path / "tight", recipe(PADDED), macs_keep=0.9, budget_ms=reach * whole, latency_model=MODEL
    )
    assert "keeps the budget" in result.decisions[0]
    assert result.metrics["macs_kept"] == pytest.approx(reach, abs=0.02)


def test_a_share_that_nobody_asked_for_gives_way_to_what_the_groups_reach(tmp_path: Path) -> None:
    _, result, _ = prune(tmp_path, recipe(PADDED), macs_keep=0.1, strict=False)
    kept = result.metrics["macs_kept"]
    assert isinstance(kept, float)
    assert 0.1 < kept < 0.9
    assert re.search(r"not 10\.0 %: the groups of channels that can be cut reach [\d.]+ %", result.decisions[0])
    # A net in which nothing can be cut has no share to give way to.
    with pytest.raises(BuildFailed, match=r"reach 100\.0 %"):
        prune(tmp_path, recipe(PADDED), macs_keep=0.5, strict=False, exclude=("*conv*",))


def test_groups_that_hold_alone_but_not_together_are_told_apart_and_the_cut_is_planned_anew(tmp_path: Path) -> None:
    _, result, ctx = prune(tmp_path, recipe("module:tests.prune.nets:OneWhole"), macs_keep=0.7)
    module = module_from_bundle(result.bundle, ctx.blobs)
    assert sorted(module.get_submodule(name).out_channels < 16 for name in ("first", "second")) == [False, True]
    assert any(line.startswith("Planned anew without second: ") for line in result.decisions)
    assert any("second (it can be cut alone, but not beside the others)" in line for line in result.decisions)


def test_the_widths_that_were_cut_are_reported_and_those_off_the_multiple_named(tmp_path: Path) -> None:
    before, result, ctx = prune(tmp_path / "aligned", channel_multiple=8, macs_keep=0.6)
    whole, cut = (module_from_bundle(bundle, ctx.blobs) for bundle in (before, result.bundle))
    widths = result.metrics["widths"]
    assert isinstance(widths, dict)
    assert widths == {
        path: [part.out_channels, cut.get_submodule(path).out_channels]
        for path, part in whole.named_modules()
        if isinstance(part, nn.Conv2d) and cut.get_submodule(path).out_channels < part.out_channels
    }
    count = len(widths)
    assert f"{count} of the {count} layers that got narrower have a multiple of 8 channels." in result.decisions[0]
    # Halved to reach the share, so that some widths are no multiples of what was asked for.
    _, result, _ = prune(tmp_path / "halved", channel_multiple=16, macs_keep=0.3)
    said = next(line for line in result.decisions if "groups of channels were cut" in line)
    assert re.search(r"[0-9] of the [0-9]+ layers .* multiple of 16 channels, all but [^()]+ \([0-9]+\), ", said)
    assert re.search(r" and [0-9]+ more\.$", said)


def test_bn_ranking_names_the_groups_without_batchnorm(tmp_path: Path) -> None:
    made = recipe("module:tests.prune.nets:Transformer")
    _, result, _ = prune(tmp_path, made, importance="bn", channel_multiple=1, macs_keep=0.8)
    assert any("have no BatchNorm and were ranked by l2" in line for line in result.decisions)


@pytest.mark.parametrize("follow", ["macs", "latency"])
def test_groups_of_a_convolution_leave_and_the_network_reloads(tmp_path: Path, follow: str) -> None:
    made = recipe("module:tests.nn.channels.couplings:Bottleneck")
    _, result, ctx = prune(tmp_path, made, macs_keep=0.4, follow=follow, importance="lamp", latency_model=MODEL)
    conv = module_from_bundle(result.bundle, ctx.blobs).get_submodule("conv2")
    assert conv.groups < 4
    assert conv.in_channels == conv.out_channels == 8 * conv.groups
    assert result.metrics["macs_kept"] <= 0.4


def test_excluded_layers_keep_their_width(tmp_path: Path) -> None:
    _, result, ctx = prune(tmp_path, exclude=("stages.1.0.conv1",), macs_keep=0.7)
    assert module_from_bundle(result.bundle, ctx.blobs).get_submodule("stages.1.0.conv1").out_channels == 32


def test_a_frozen_program_is_refused_before_any_work(tmp_path: Path) -> None:
    frozen = recipe("program", {"form": "frozen"})
    bundle = bundle_of(make_context(tmp_path), recipe(kwargs=KWARGS)).model_copy(update={"recipe": frozen})
    with pytest.raises(UserError, match="cannot be pruned"):
        PruneStage(PruneConfig(macs_keep=0.5)).requires(make_inputs(model=bundle), make_context(tmp_path))


def test_an_output_that_kept_too_much_is_refused(tmp_path: Path) -> None:
    before, result, ctx = prune(tmp_path)
    unchanged = StageResult(bundle=before, metrics=result.metrics)
    with pytest.raises(BuildFailed, match=r"keep at most 50\.0 %"):
        PruneStage(PruneConfig(macs_keep=0.5)).ensures(make_inputs(model=before), unchanged, ctx)


@pytest.mark.slow
def test_a_rebuilt_program_is_pruned_too(tmp_path: Path) -> None:
    batch = {0: torch.export.Dim("N")}
    program = torch.export.export(seeded(PaddedShortcut), (torch.randn(2, 3, 8, 8),), dynamic_shapes=(batch,))
    torch.export.save(program, tmp_path / "model.pt2")
    ctx = make_context(tmp_path)
    loaded = load_model(tmp_path / "model.pt2", blobs=ctx.blobs, scratch=ctx.scratch)
    stage = PruneStage(PruneConfig(macs_keep=0.6, channel_multiple=1))
    result = run_stage(stage, make_inputs(model=loaded.bundle), ctx)
    assert result.bundle.files["program.pt2"] == loaded.bundle.files["program.pt2"]
    assert module_from_bundle(result.bundle, ctx.blobs)(torch.zeros(1, 3, 8, 8)).shape == (1, 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_100", "vit_tiny_patch16_224", "convnext_atto"])
def test_timm_models_are_pruned_to_half_in_multiples_of_eight(tmp_path: Path, name: str) -> None:
    pytest.importorskip("timm")
    _, result, ctx = prune(
        tmp_path, recipe(f"timm:{name}", {"num_classes": 10}, side=224), channel_multiple=8, macs_keep=0.5
    )
    assert isinstance(result.metrics["macs_kept"], float)
    assert 0.49 < result.metrics["macs_kept"] <= 0.5
    assert len(result.decisions) == 1
    reloaded = module_from_bundle(ModelBundle.from_json(result.bundle.to_json()), FolderBlobs(tmp_path / "blobs"))
    images = torch.randn(1, 3, 224, 224)
    assert torch.equal(reloaded(images), module_from_bundle(result.bundle, ctx.blobs)(images))
