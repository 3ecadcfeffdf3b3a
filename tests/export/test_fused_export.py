from __future__ import annotations

from pathlib import Path

from edgekd.core.preprocess import Preprocessing
from edgekd.core.recipe import ModelRecipe
from edgekd.export.stage import ExportConfig, ExportStage
from edgekd.nn.build import module_from_recipe
from edgekd.nn.count import count_params
from edgekd.nn.reparam import reparameterised
from edgekd.nn.save import bundle_from_module
from edgekd.runtimes.onnx_file import MODEL_FILE, graph_from_file
from edgekd.testing.harness import make_context, make_inputs, run_stage
from tests.nn.zoo import randomised

SPEC = {"depths": [2, 1], "widths": [8, 8, 16], "strides": [1, 1, 2], "classes": 4}


def test_a_student_with_branches_is_exported_as_a_plain_stack_of_convolutions(tmp_path: Path) -> None:
    recipe = ModelRecipe(builder="edgekd:repvgg", kwargs=SPEC, preprocessing=Preprocessing(size=(8, 8)))
    module, ctx = randomised(module_from_recipe(recipe)), make_context(tmp_path)
    student = bundle_from_module(module, recipe=recipe, blobs=ctx.blobs, scratch=ctx.scratch)
    result = run_stage(ExportStage(ExportConfig()), make_inputs(model=student), ctx)
    kinds = [node.op_type for node in graph_from_file(ctx.path(result.bundle, MODEL_FILE)).graph.node]
    assert kinds.count("Conv") == kinds.count("Relu") == 4
    assert not {"Add", "BatchNormalization"} & set(kinds)
    assert result.metrics["params_m"] == count_params(reparameterised(module)) / 1e6
    assert "The branches of 4 blocks became one convolution each." in result.decisions
