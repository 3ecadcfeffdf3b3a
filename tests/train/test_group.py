"""Several teachers: their mean probability, and what each says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from edgekd.core.preprocess import Preprocessing
from edgekd.data.dataset import Dataset
from edgekd.errors import UserError
from edgekd.nn.mode import evaluating
from edgekd.testing.harness import make_context
from edgekd.testing.toys import toy_cnn
from edgekd.train.fit import distil_
from edgekd.train.group import TeacherGroup, mean_logits, teacher_source
from edgekd.train.reconcile import PixelMap, Reconciled
from edgekd.train.signal import Signal
from tests.train.conftest import PREPROCESSING, Train, config

SHAPE = PREPROCESSING.input_shape
INNER = frozenset({Signal.LOGITS, Signal.EMBEDDING})


def test_the_softmax_of_the_combination_is_the_mean_of_the_probabilities() -> None:
    logits = [30 * torch.randn(5, 4, dtype=torch.float64) for _ in range(3)]
    expected = torch.stack([x.softmax(1) for x in logits]).mean(0)
    torch.testing.assert_close(mean_logits(logits).softmax(1), expected)
    torch.testing.assert_close(mean_logits([logits[0]]).softmax(1), logits[0].softmax(1))


def test_weights_are_the_shares_of_the_probabilities() -> None:
    logits = [torch.randn(5, 4), torch.randn(5, 4), torch.randn(5, 4)]
    found = mean_logits(logits, (0.5, 0.2, 0.3)).exp()
    expected = 0.5 * logits[0].softmax(1) + 0.2 * logits[1].softmax(1) + 0.3 * logits[2].softmax(1)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(mean_logits(logits[:2], (1.0, 0.0)).exp(), logits[0].softmax(1))
    group = TeacherGroup([toy_cnn(seed=1), toy_cnn(seed=2)]).eval()
    images = torch.randn(3, 3, 8, 8)
    group.weigh_([3, 1])
    first, second = (member(images).softmax(1) for member in group.members)
    torch.testing.assert_close(group(images).exp(), 0.75 * first + 0.25 * second)
    source = teacher_source(group, frozenset({Signal.LOGITS}), (3, 8, 8)).eval()
    torch.testing.assert_close(source(images).logits, group(images))


@pytest.mark.parametrize("weights", [[1.0], [0.0, 0.0], [1.0, 1.0, 1.0]])
def test_weights_that_do_not_fit_the_teachers_are_refused(weights: list[float]) -> None:
    with pytest.raises(UserError, match="There are 2 teachers and teacher_weights"):
        TeacherGroup([toy_cnn(seed=1), toy_cnn(seed=2)]).weigh_(weights)


def test_weights_of_a_single_teacher_are_refused(train: Train) -> None:
    with pytest.raises(UserError, match="there are not several"):
        train(teacher_weights=[1.0])


def test_teachers_of_unequal_classes_are_refused() -> None:
    group = TeacherGroup([toy_cnn(classes=4), toy_cnn(classes=5)])
    with pytest.raises(UserError, match="The teachers have 4, 5 classes"):
        teacher_source(group, frozenset({Signal.LOGITS}), SHAPE).spec()


def test_of_several_teachers_there_are_logits_alone() -> None:
    group = TeacherGroup([toy_cnn(seed=1), toy_cnn(seed=2)]).eval()
    images = torch.randn(2, *SHAPE)
    source = teacher_source(group, INNER, SHAPE).eval()
    assert set(source(images).flat()) == {"logits"}
    assert torch.equal(source(images).logits, group(images))
    assert (source.spec().classes, source.spec().width) == (4, None)


def test_a_reconciled_teacher_is_tapped_in_its_own_layers() -> None:
    module = toy_cnn(seed=1)
    its = Preprocessing(size=(8, 8), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    pixels = PixelMap(PREPROCESSING, its)
    source = teacher_source(Reconciled(module, pixels=pixels), INNER, SHAPE)
    images = torch.randn(2, *SHAPE)
    with evaluating(source):
        said = source(images)
        assert torch.equal(said.logits, module(pixels(images)))
    assert said.embedding is not None


def test_a_teacher_of_another_order_is_turned_in_its_logits_and_its_classifier() -> None:
    module, order = toy_cnn(seed=1), (2, 0, 3, 1)
    turned = Reconciled(module, order=order)
    wanted = INNER | {Signal.CLASSIFIER, Signal.CLASS_MAPS}
    plain, other = (teacher_source(network, wanted, SHAPE).eval() for network in (module, turned))
    images = torch.randn(2, *SHAPE)
    expected, found = plain(images), other(images)
    assert torch.equal(found.logits, expected.logits[:, order])
    assert torch.equal(found.logits, turned.eval()(images))
    assert found.class_maps is not None
    assert expected.class_maps is not None
    assert torch.equal(found.class_maps, expected.class_maps[:, order])
    assert found.classifier is not None
    assert expected.classifier is not None
    again = found.embedding @ found.classifier.weight.T + found.classifier.bias
    torch.testing.assert_close(again, found.logits)


def test_a_student_learns_from_several_teachers_as_from_their_mean(
    tmp_path: Path, data: Dataset, teacher: nn.Module
) -> None:
    students = []
    for name, taught in (("twice", TeacherGroup([teacher, teacher])), ("once", teacher)):
        student = toy_cnn(seed=1)
        options = config(epochs=2, teacher_views=1, augment={})
        distil_(student, taught, data, PREPROCESSING, options, make_context(tmp_path / name))
        students.append(student.state_dict())
    for name, value in students[0].items():
        torch.testing.assert_close(value, students[1][name], rtol=1e-3, atol=1e-4)
