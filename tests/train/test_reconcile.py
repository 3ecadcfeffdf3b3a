"""A teacher of another normalisation, or with its classes in another order, as the student's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgekd.core.preprocess import Preprocessing
from edgekd.core.recipe import ModelRecipe
from edgekd.data.transform import preprocess
from edgekd.errors import UserError
from edgekd.train.reconcile import Reconciled, class_order, reconciled, reconciliation

OURS = Preprocessing(size=(6, 6), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
LABELS = ("cat", "dog", "owl")
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 6, 6, 3), dtype=np.uint8)


def recipe(p: Preprocessing = OURS, labels: tuple[str, ...] = LABELS) -> ModelRecipe:
    return ModelRecipe(builder="edgekd:residual", preprocessing=p, labels=labels)


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_the_teacher_gets_what_its_own_preprocessing_would_have_made_of_the_pixels(order: str) -> None:
    its = Preprocessing(size=(6, 6), mean=(0.1, 0.2, 0.6), std=(0.5, 0.25, 0.125), channel_order=order)
    teacher = reconciled(nn.Identity(), recipe(its), recipe())
    seen = teacher(torch.from_numpy(preprocess(PIXELS, OURS)))
    torch.testing.assert_close(seen, torch.from_numpy(preprocess(PIXELS, its)), rtol=1e-5, atol=1e-5)
    assert reconciliation(recipe(its), recipe()) == ("The teacher sees the student's images in its own normalisation.",)


def test_a_teacher_of_equal_preprocessing_is_left_alone() -> None:
    module = nn.Identity()
    assert reconciled(module, recipe(), recipe()) is module
    assert reconciliation(recipe(), recipe()) == ()


def test_another_way_of_resizing_is_said() -> None:
    its = OURS.model_copy(update={"interpolation": "bicubic", "crop_fraction": 0.875})
    assert not isinstance(reconciled(nn.Identity(), recipe(its), recipe(), "big"), Reconciled)
    said = reconciliation(recipe(its), recipe(), "big")
    assert said[0].startswith("The big sees images that were resized and cropped as the student's are (bilinear, 1 of")


@pytest.mark.parametrize(
    "its", [OURS.model_copy(update={"size": (8, 8)}), Preprocessing(size=(6, 6), mean=(0.5,), std=(0.5,))]
)
def test_other_pixels_are_refused(its: Preprocessing) -> None:
    with pytest.raises(UserError, match="must see the same pixels, but the student takes 3x6x6 and the teacher"):
        reconciled(nn.Identity(), recipe(its), recipe())


def test_the_teachers_logits_come_in_the_students_order_and_that_is_said() -> None:
    its = recipe(labels=("owl", "cat", "dog"))
    teacher = reconciled(nn.Identity(), its, recipe())
    assert teacher(torch.tensor([[3.0, 1.0, 2.0]])).tolist() == [[1.0, 2.0, 3.0]]
    (said,) = reconciliation(its, recipe())
    assert "classes in another order" in said


@pytest.mark.parametrize("its", [(), LABELS, ("0", "1", "2")])
def test_a_teacher_of_the_same_order_or_without_names_is_left_alone(its: tuple[str, ...]) -> None:
    assert class_order(its, LABELS) is None


@pytest.mark.parametrize(
    ("its", "said"),
    [
        (("cat", "dog", "fox"), "1 of the student's 3 are none of the teacher's 3, such as 'owl'"),
        (("cat", "dog", "owl", "fox"), "0 of the student's 3 are none of the teacher's 4"),
    ],
)
def test_other_classes_are_refused(its: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        class_order(its, LABELS)


def test_numbers_are_names_where_both_have_the_same_ones() -> None:
    """Folders 0 to 11 are sorted as text; a file numbers its classes."""
    numbers = tuple(str(number) for number in range(12))
    assert class_order(tuple(sorted(numbers)), numbers) == (0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 2, 3)


@pytest.mark.parametrize("ours", [("cat", "cat", "dog"), ("cat", "dog", "dog", "owl")])
def test_a_name_twice_on_one_side_is_no_order(ours: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="name other classes"):
        class_order(LABELS, ours)


def test_a_name_of_two_classes_says_no_order() -> None:
    with pytest.raises(UserError, match="some names stand for two"):
        class_order(("crane", "crane", "owl"), ("owl", "crane", "crane"))
