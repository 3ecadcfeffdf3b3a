from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekd.errors import UserError
from edgekd.nn.count import count_params
from edgekd.nn.models import BUILDERS
from tests.nn.zoo import images

RESIDUAL = {"depths": [1, 2], "widths": [4, 6, 8], "classes": 5}
INVERTED = {"stages": [{"channels": 8, "depth": 2, "stride": 2}], "stem": 4, "classes": 5, "head": 12, "stem_stride": 1}

RESNET = {"depths": [1, 1], "widths": [8, 16], "inner": [4, 8], "stem": 8, "classes": 5}
REPVGG = {"depths": [1, 2], "widths": [4, 6, 8], "strides": [1, 1, 2], "classes": 5}
NASBENCH201 = {"operations": ["nor_conv_3x3", "none", "skip_connect"] * 2, "width": 4, "cells": 1, "classes": 5}
FAMILIES = {
    "residual": RESIDUAL,
    "inverted": INVERTED,
    "resnet": RESNET,
    "repvgg": REPVGG,
    "nasbench201": NASBENCH201,
}


@pytest.mark.parametrize(("family", "kwargs"), FAMILIES.items())
def test_every_family_maps_images_to_logits_and_trains(family: str, kwargs: dict) -> None:
    module = BUILDERS.get(family)(kwargs)
    logits = module(images())
    logits.sum().backward()
    assert logits.shape == (3, 5)
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_every_family_is_listed_in_this_test() -> None:
    assert set(BUILDERS) == set(FAMILIES)


def test_the_cifar_resnet20_has_the_size_of_the_paper() -> None:
    module = BUILDERS.get("residual")({"depths": [3, 3, 3], "widths": [16, 16, 32, 64], "classes": 10})
    projections = sum(
        count_params(part.shortcut)
        for part in module.modules()
        if isinstance(getattr(part, "shortcut", None), nn.Module)
    )
    # He et al. 2015, table 6: 0.27 M, with the shortcut that has no parameters.
    assert count_params(module) - projections == 269722


def test_each_stage_but_the_first_halves_the_resolution() -> None:
    module = BUILDERS.get("residual")({"depths": [1, 1, 1], "widths": [4, 4, 4, 4], "classes": 2})
    assert module.stages(module.stem(images(1, 16))).shape == (1, 4, 4, 4)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_the_stem_divides_the_resolution_by_its_stride(stride: int) -> None:
    module = BUILDERS.get("residual")({**RESIDUAL, "stem_stride": stride})
    assert module.stem(images(1, 16)).shape == (1, 4, 16 // stride, 16 // stride)


def test_an_inverted_block_adds_its_input_only_where_the_shapes_agree() -> None:
    module = BUILDERS.get("inverted")(INVERTED)
    blocks = [part for part in module.modules() if hasattr(part, "residual")]
    assert [block.residual for block in blocks] == [False, True]


def test_an_expansion_of_one_has_no_expanding_convolution() -> None:
    kwargs = {"stages": [{"channels": 4, "expansion": 1}], "stem": 4, "classes": 2}
    module = BUILDERS.get("inverted")(kwargs)
    assert [part.groups for part in module.modules() if isinstance(part, nn.Conv2d)] == [1, 4, 1]


@pytest.mark.parametrize(
    ("family", "kwargs", "words"),
    [
        ("residual", {**RESIDUAL, "width": [4]}, "unknown key 'width'. Did you mean 'widths'?"),
        ("residual", {**RESIDUAL, "widths": [4, 6]}, "3 values for depths [1, 2], got [4, 6]"),
        ("residual", {**RESIDUAL, "kernel": 4}, "kernel must be odd, got 4"),
        ("inverted", {**INVERTED, "stages": []}, "'stages'"),
        ("resnet", {**RESNET, "inner": [4]}, "2 values for depths [1, 1], got [8, 16] and [4]"),
        ("repvgg", {**REPVGG, "strides": [1, 2]}, "3 values for depths [1, 2], got [4, 6, 8] and [1, 2]"),
        ("inverted", {**INVERTED, "stages": [{"channels": 8, "kernel": 2}]}, "must be odd"),
    ],
)
def test_numbers_that_make_no_network_are_refused_with_the_reason(family: str, kwargs: dict, words: str) -> None:
    with pytest.raises(UserError) as caught:
        BUILDERS.get(family)(kwargs)
    assert words in str(caught.value)


def test_an_untrained_network_passes_a_signal_through_every_branch() -> None:
    torch.manual_seed(0)
    module = BUILDERS.get("residual")(RESIDUAL)
    assert all(part.weight.eq(1).all() for part in module.modules() if isinstance(part, nn.BatchNorm2d))
