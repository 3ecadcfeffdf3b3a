from __future__ import annotations

import pytest

from edgekd.core.preprocess import Preprocessing
from edgekd.errors import UserError
from edgekd.nn.overrides import PreprocessingOverrides

OWN = Preprocessing(size=(8, 8), mean=(0.1, 0.2, 0.3), interpolation="bicubic", crop_fraction=0.95)


def test_what_is_not_given_stays_the_architectures_own() -> None:
    assert PreprocessingOverrides().applied(OWN) == OWN
    changed = PreprocessingOverrides(channel_order="BGR", std=(1.0, 1.0, 1.0)).applied(OWN)
    assert changed == OWN.model_copy(update={"channel_order": "BGR", "std": (1.0, 1.0, 1.0)})


def test_values_for_another_number_of_channels_are_refused() -> None:
    with pytest.raises(UserError, match=r"images of 3 channels, but std has 1 values"):
        PreprocessingOverrides(std=(0.5,)).applied(OWN)


def test_values_that_no_preprocessing_has_are_refused() -> None:
    with pytest.raises(UserError, match="std and size must be positive"):
        PreprocessingOverrides(std=(0.5, 0.0, 0.5)).applied(OWN)
