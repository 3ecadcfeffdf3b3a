from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekd.core.preprocess import Preprocessing
from edgekd.core.recipe import ModelRecipe
from edgekd.nn.build import module_from_recipe
from edgekd.nn.models.inverted import SqueezeExcite, inverted_from_kwargs
from tests.nn.zoo import images

STAGE = {"channels": 8, "expansion": 3, "kernel": 5}
SPEC = {"stages": [STAGE], "stem": 8, "classes": 5, "stem_stride": 1}


def test_recipes_without_squeeze_and_excite_build_what_they_always_built() -> None:
    recipe = ModelRecipe(builder="edgekd:inverted", kwargs=SPEC, preprocessing=Preprocessing(size=(8, 8)))
    module = module_from_recipe(recipe, seed=3)
    kinds = [type(part) for part in module.features[3].layers]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU6] * 2 + [nn.Conv2d, nn.BatchNorm2d]
    # Drawn by this seed before the option existed.
    assert float(module.features[3].layers[0].weight.detach().sum()) == pytest.approx(-2.912343, abs=1e-5)


def test_the_gate_stands_between_the_filter_and_the_projection_and_keeps_a_quarter() -> None:
    module = inverted_from_kwargs({**SPEC, "stages": [{**STAGE, "squeeze_excite": True}], "squeeze_multiple": 4})
    layers = list(module.features[3].layers)
    assert [type(part) for part in layers[5:8]] == [nn.ReLU6, SqueezeExcite, nn.Conv2d]
    assert layers[6].squeeze.out_channels == 8  # 24 / 4 = 6, rounded up to a multiple of 4


def test_a_gate_weighs_channels_by_the_mean_of_the_whole_image() -> None:
    gate, x = SqueezeExcite(8, multiple=2).double(), images(channels=8).double()
    mean = x.mean((2, 3))
    hidden = torch.relu(mean @ gate.squeeze.weight.flatten(1).T + gate.squeeze.bias)
    score = ((hidden @ gate.excite.weight.flatten(1).T + gate.excite.bias) / 6 + 0.5).clamp(0, 1)
    torch.testing.assert_close(gate(x), x * score[:, :, None, None])
