from __future__ import annotations

from pathlib import Path

import torch

from edgekd.core.recipe import ModelRecipe
from edgekd.nn.build import module_from_bundle, module_from_recipe
from edgekd.nn.reparam import FUSE, fusable_blocks
from edgekd.nn.save import bundle_from_module
from edgekd.quant.bucket import WeightGrid, projected
from edgekd.quant.qd_stage import QuantizedDistillConfig, QuantizedDistillStage
from edgekd.testing.harness import make_context, make_inputs, run_stage
from edgekd.testing.toy_data import toy_dataset
from edgekd.testing.toys import toy_recipe

SPEC = {"depths": [1, 1], "widths": [8, 8, 16], "strides": [1, 1, 2], "classes": 4}


def test_a_student_with_branches_is_fused_first_so_that_the_deployed_weights_lie_on_the_grid(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, resources={"data": toy_dataset()})
    recipe = ModelRecipe(builder="edgekd:repvgg", kwargs=SPEC, preprocessing=toy_recipe().preprocessing)
    student = bundle_from_module(module_from_recipe(recipe), recipe=recipe, blobs=ctx.blobs, scratch=ctx.scratch)
    config = QuantizedDistillConfig(epochs=1, batch_size=16, bits=4)
    result = run_stage(QuantizedDistillStage(config), make_inputs(student=student), ctx)
    module = module_from_bundle(result.bundle, ctx.blobs)
    weight = module.get_submodule("stages.0.0.0").weight
    assert isinstance(weight, torch.Tensor)
    assert result.bundle.model.edits == (FUSE,)
    assert fusable_blocks(module) == ()
    assert torch.equal(projected(weight, WeightGrid(bits=4)), weight)
    assert any("The branches of 3 blocks became one convolution each" in line for line in result.decisions)
