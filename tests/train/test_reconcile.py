"""A teacher of another normalisation sees the same pixels in its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgekd.core.preprocess import Preprocessing
from edgekd.data.transform import preprocess
from edgekd.errors import UserError
from edgekd.train.reconcile import Renormalised, teacher_of_our_pixels

OURS = Preprocessing(size=(6, 6), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 6, 6, 3), dtype=np.uint8)


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_the_teacher_gets_what_its_own_preprocessing_would_have_made_of_the_pixels(order: str) -> None:
    its = Preprocessing(size=(6, 6), mean=(0.1, 0.2, 0.6), std=(0.5, 0.25, 0.125), channel_order=order)
    teacher, said = teacher_of_our_pixels(nn.Identity(), its, OURS)
    seen = teacher(torch.from_numpy(preprocess(PIXELS, OURS)))
    torch.testing.assert_close(seen, torch.from_numpy(preprocess(PIXELS, its)), rtol=1e-5, atol=1e-5)
    assert said == ("The teacher sees the student's images in its own normalisation.",)


def test_a_teacher_of_equal_preprocessing_is_left_alone() -> None:
    module = nn.Identity()
    assert teacher_of_our_pixels(module, OURS, OURS) == (module, ())


def test_another_way_of_resizing_is_said() -> None:
    its = OURS.model_copy(update={"interpolation": "bicubic", "crop_fraction": 0.875})
    teacher, said = teacher_of_our_pixels(nn.Identity(), its, OURS, "big")
    assert not isinstance(teacher, Renormalised)
    assert said[0].startswith("The big sees images that were resized and cropped as the student's are (bilinear, 1 of")


@pytest.mark.parametrize(
    "its", [OURS.model_copy(update={"size": (8, 8)}), Preprocessing(size=(6, 6), mean=(0.5,), std=(0.5,))]
)
def test_other_pixels_are_refused(its: Preprocessing) -> None:
    with pytest.raises(UserError, match="must see the same pixels, but the student takes 3x6x6 and the teacher"):
        teacher_of_our_pixels(nn.Identity(), its, OURS)
