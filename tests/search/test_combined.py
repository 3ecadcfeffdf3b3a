from __future__ import annotations

import math

import pytest
import torch

from edgekd.core.preprocess import Preprocessing
from edgekd.core.recipe import ModelRecipe
from edgekd.nn.build import module_from_recipe
from edgekd.search import score
from edgekd.search.combined import Combined
from edgekd.search.proxies.isotropy import channel_isotropy
from edgekd.search.proxies.size import capacity
from edgekd.search.ranking import ranking_from_name
from edgekd.search.spaces.nasbench201 import recipe_from_cell
from edgekd.testing.toys import toy_cnn

PREPROCESSING = Preprocessing(size=(16, 16), mean=(0.5,) * 3, std=(0.5,) * 3)
IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
RESIDUAL = "|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|none~2|"


def cell(text: str) -> ModelRecipe:
    """A small network of one cell a stage."""
    recipe = recipe_from_cell(text, classes=4, preprocessing=PREPROCESSING)
    return recipe.model_copy(update={"kwargs": {**recipe.kwargs, "cells": 1}})


def residual(depths: list[int]) -> ModelRecipe:
    kwargs = {"depths": depths, "widths": [16, 16, 32, 64], "classes": 4, "in_channels": 3}
    return ModelRecipe(builder="edgekd:residual", kwargs=kwargs, preprocessing=PREPROCESSING)


def test_it_is_the_default_ranking_of_the_public_function() -> None:
    recipes = [residual([1, 1, 1]), residual([1, 2, 1])]
    assert score(recipes, toy_cnn(), IMAGES, seeds=(0,)) == score(recipes, toy_cnn(), IMAGES, "combined", seeds=(0,))


def test_scores_do_not_depend_on_the_other_networks_of_the_call() -> None:
    recipes = [residual([1, 1, 1]), residual([3, 1, 1]), cell(RESIDUAL)]
    together = score(recipes, toy_cnn(), IMAGES, seeds=(0,))
    assert together == [score([recipe], toy_cnn(), IMAGES, seeds=(0,))[0] for recipe in recipes]


def test_the_batch_and_the_teacher_do_not_matter() -> None:
    first = score([cell(RESIDUAL)], toy_cnn(), IMAGES, seeds=(0,))
    assert first == score([cell(RESIDUAL)], toy_cnn(seed=3), torch.randn(9, 3, 16, 16), seeds=(0,))


def test_caps_leave_ordinary_networks_to_their_capacity() -> None:
    ranking = ranking_from_name("combined")
    assert isinstance(ranking, Combined)
    good, better = (5.0, 0.9, 0.0, -0.1), (5.0, 0.95, 0.1, -0.01)
    first, second, larger = ranking.scores([good, better, (5.1, 0.9, 0.0, -0.1)])
    assert first == second < larger
    assert ranking.scores([(5.0, 0.4, 0.0, -0.1)])[0] < first


def test_pooling_between_convolutions_costs_more_than_its_missing_weights() -> None:
    pooled = "|nor_conv_3x3~0|+|none~0|avg_pool_3x3~1|+|none~0|none~1|avg_pool_3x3~2|"
    plain = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|skip_connect~2|"
    assert capacity(module_from_recipe(cell(pooled))) == capacity(module_from_recipe(cell(plain)))
    with_pools, without = score([cell(pooled), cell(plain)], toy_cnn(), IMAGES, seeds=(0, 1))
    assert with_pools < without


def test_a_cell_without_a_path_ranks_below_all_and_the_log_says_why(caplog: pytest.LogCaptureFixture) -> None:
    dead = "|none~0|+|none~0|nor_conv_3x3~1|+|none~0|none~1|none~2|"
    found = score([cell(dead), cell(RESIDUAL)], toy_cnn(), IMAGES, seeds=(0,))
    assert found[0] == -math.inf < found[1]
    assert "recipe 0 (edgekd:nasbench201) is not scored" in caplog.text


def test_capacity_is_the_logarithm_of_summed_powers() -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))
    assert capacity(module) == pytest.approx(math.log(72 ** (2 / 3) + 8 ** (2 / 3)))


def test_isotropy_is_one_for_independent_channels_and_zero_for_copies() -> None:
    noise = torch.randn(8, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    assert channel_isotropy(noise) == pytest.approx(1.0, abs=1e-3)
    assert channel_isotropy(noise[:, :1].expand(-1, 4, -1, -1)) == pytest.approx(0.0, abs=1e-3)
