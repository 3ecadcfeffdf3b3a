from __future__ import annotations

import pytest
import torch

from edgekd.errors import UserError
from edgekd.nn.timm import kwargs_from_weights, module_from_timm, preprocessing_from_timm

NAME = "test_resnet"


def test_a_registered_model_is_built_without_its_weights() -> None:
    module = module_from_timm(NAME, {"num_classes": 5}).eval()
    assert module(torch.zeros(1, 3, 32, 32)).shape == (1, 5)


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18.a1_in1k", "local-dir:/tmp"])
def test_names_that_would_fetch_files_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="has no model"):
        module_from_timm(name, {})


def test_an_unknown_name_suggests_the_near_one() -> None:
    with pytest.raises(UserError, match=r"Did you mean 'mobilenetv3_small_100'"):
        module_from_timm("mobilenetv3_smal_100", {})


def test_arguments_that_the_model_does_not_take_are_named() -> None:
    with pytest.raises(UserError, match=r"does not take the arguments \{'colours': 7\}"):
        module_from_timm(NAME, {"colours": 7})


def test_the_preprocessing_is_the_one_of_the_pretrained_weights() -> None:
    module = module_from_timm("resnet18.a1_in1k", {})
    found = preprocessing_from_timm(module)
    assert found.size == (224, 224)
    assert (found.interpolation, found.crop_fraction) == ("bicubic", 0.95)


def test_grey_images_get_the_average_of_the_channels() -> None:
    found = preprocessing_from_timm(module_from_timm(NAME, {"in_chans": 1}))
    assert found.channels == 1
    assert found.mean == (0.5,)


def test_the_weights_of_a_fine_tuned_model_say_its_classes_and_channels() -> None:
    state = module_from_timm(NAME, {"num_classes": 5, "in_chans": 1}).state_dict()
    assert kwargs_from_weights(NAME, state, {}) == {"num_classes": 5, "in_chans": 1}
    assert kwargs_from_weights(NAME, state, {"num_classes": 7}) == {"in_chans": 1}
    assert kwargs_from_weights(NAME, module_from_timm(NAME, {}).state_dict(), {}) == {}
    assert kwargs_from_weights("no_such_model", state, {}) == {}
