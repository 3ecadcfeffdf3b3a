"""Mixed images: shares that fit them, the same mixture for the teacher, and what cannot be had with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekd.data.dataset import UNLABELLED, Dataset
from edgekd.errors import UserError
from edgekd.testing.harness import make_context
from edgekd.testing.toys import toy_cnn
from edgekd.train.fit import distil_
from edgekd.train.timm import Mixing
from tests.train.conftest import PREPROCESSING, Train, config
from tests.train.test_resume import EVERY_STEP, finished


def one_colour_each(n: int) -> Tensor:
    """(n, 1, 6, 6): image i holds the value i everywhere."""
    return torch.arange(float(n))[:, None, None, None].expand(n, 1, 6, 6).clone()


@pytest.mark.parametrize("options", [{"mixup": 0.8, "cutmix": 0.0}, {"mixup": 0.0, "cutmix": 1.0}])
def test_the_shares_are_those_of_the_pixels(options: dict[str, float]) -> None:
    labels = torch.arange(5)
    images, shares = Mixing(**options, classes=5)(one_colour_each(5), labels, seed=3)
    assert shares is not None
    torch.testing.assert_close(images.mean((1, 2, 3)), shares @ torch.arange(5.0))
    torch.testing.assert_close(shares.sum(1), torch.ones(5))
    assert torch.equal(shares[4], torch.eye(5)[4]), "of an odd number the last stays as it is"
    assert 0 < float(shares[0].max()) < 1


@pytest.mark.parametrize("options", [{"mixup": 0.8, "cutmix": 0.0}, {"mixup": 0.0, "cutmix": 1.0}])
def test_what_comes_of_an_image_without_a_label_is_a_share_of_no_class(options: dict[str, float]) -> None:
    labels = torch.tensor([0, 1, UNLABELLED, UNLABELLED, 2])
    mixing = Mixing(**options, classes=3)
    _, expected = mixing(one_colour_each(5), torch.tensor([0, 1, 0, 0, 2]), seed=3)
    _, shares = mixing(one_colour_each(5), labels, seed=3)
    assert shares is not None
    assert expected is not None
    assert shares.shape == (5, 3)
    assert torch.equal(shares[:, 1:], expected[:, 1:]), "0 stands for the unknown in the one and not in the other"
    assert shares.sum().item() == pytest.approx(3), "labels are handed around, not lost"
    _, none = mixing(one_colour_each(4), torch.full((4,), UNLABELLED), seed=3)
    assert none is not None
    assert not none.any()


def test_a_mixture_is_a_function_of_the_seed_and_leaves_numpys_generator_alone() -> None:
    mixing = Mixing(mixup=0.8, cutmix=1.0, classes=4)
    np.random.seed(1)
    expected = np.random.rand()
    np.random.seed(1)
    first, again, other = (mixing(torch.randn(4, 1, 6, 6).zero_() + one_colour_each(4), None, s)[0] for s in (5, 5, 6))
    assert np.random.rand() == expected
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_teacher_sees_the_mixture_that_the_student_sees(tmp_path: Path, data: Dataset, teacher: nn.Module) -> None:
    seen: dict[str, list[Tensor]] = {"student": [], "teacher": []}
    student = toy_cnn(seed=1)
    handles = [
        network.register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0].clone()))
        for name, network in (("student", student), ("teacher", teacher))
    ]
    options = config(epochs=1, mixup=0.8, cutmix=1.0)
    distil_(student, teacher, data, PREPROCESSING, options, make_context(tmp_path))
    for handle in handles:
        handle.remove()
    batches = {name: [x for x in images if len(x) > 1] for name, images in seen.items()}
    assert len(batches["student"]) == 4  # the teacher was looked at once more before the first step
    assert all(torch.equal(a, b) for a, b in zip(batches["student"], batches["teacher"][-4:], strict=True))


def test_mixing_trains_with_labels_and_without(train: Train, unlabelled: Dataset) -> None:
    plain, _, _ = train(folder="plain", epochs=2)
    mixed, report, _ = train(folder="mixed", epochs=2, mixup=0.5)
    assert not all(torch.equal(a, b) for a, b in zip(plain.parameters(), mixed.parameters(), strict=True))
    assert report.supervised_loss is not None
    assert 0 < report.train_accuracy <= 1
    _, report, _ = train(folder="free", on=unlabelled, epochs=2, cutmix=1.0)
    assert report.supervised_loss is None


def test_an_interrupted_training_mixes_as_it_would_have(tmp_path: Path, data: Dataset, teacher: nn.Module) -> None:
    expected, _ = finished(tmp_path / "whole", data, teacher, [], EVERY_STEP, mixup=0.5, cutmix=1.0)
    got, _ = finished(tmp_path / "cut", data, teacher, [7], EVERY_STEP, mixup=0.5, cutmix=1.0)
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_mixing_is_refused_with_stored_answers_and_with_objectives_of_whole_images(train: Train) -> None:
    with pytest.raises(UserError, match="teacher_views must be 0"):
        config(mixup=0.5, teacher_views=2)
    with pytest.raises(UserError, match=r"'dkd' asks for the class or the place(.|\n)*kd, dist"):
        train(objective="dkd", cutmix=1.0)
