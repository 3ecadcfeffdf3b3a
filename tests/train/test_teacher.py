"""Teacher outputs: stored ones equal live ones, and the teacher runs only while a view is new."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgekd.core.events import SilentReporter
from edgekd.core.stage import Execution
from edgekd.data.dataset import Dataset
from edgekd.data.transform import preprocess
from edgekd.errors import UserError
from edgekd.testing.harness import make_context
from edgekd.testing.toys import toy_cnn
from edgekd.train.engine import start_fabric
from edgekd.train.fit import distil_
from edgekd.train.objective import Signal
from edgekd.train.signals import SignalSource
from edgekd.train.survey import class_means
from edgekd.train.teacher import Teacher
from edgekd.train.teacher_cache import TeacherCache
from tests.train.conftest import PREPROCESSING, Train, config

INPUT = PREPROCESSING.input_shape


def images_seen(teacher: nn.Module, data: Dataset, folder: Path, **options: object) -> int:
    """How many training images a teacher is shown; that it is no guesser is looked up on `select` before."""
    seen = 0

    def count(module: nn.Module, args: tuple[torch.Tensor]) -> None:
        nonlocal seen
        seen += len(args[0]) if len(args[0]) > 1 else 0  # not the single image that finds the shapes

    handle = teacher.register_forward_pre_hook(count)
    distil_(toy_cnn(seed=1), teacher, data, PREPROCESSING, config(**options), make_context(folder))
    handle.remove()
    return seen - len(data.select)


def test_the_teacher_runs_once_per_view_and_image(tmp_path: Path, data: Dataset, teacher: nn.Module) -> None:
    assert images_seen(teacher, data, tmp_path / "a", epochs=5, teacher_views=2) == 2 * 64
    assert images_seen(teacher, data, tmp_path / "b", epochs=5, teacher_views=0) == 5 * 64
    assert images_seen(teacher, data, tmp_path / "c", epochs=2, teacher_views=4) == 2 * 64
    assert not list((tmp_path / "c" / "scratch").glob("teacher-*")), "nothing would be read twice"


def test_the_teacher_rests_while_no_term_reads_it(tmp_path: Path, data: Dataset, teacher: nn.Module) -> None:
    terms = [{"name": "kd", "from_epoch": 1, "until_epoch": 3}, {"name": "sla"}]
    assert images_seen(teacher, data, tmp_path / "live", epochs=5, objectives=terms) == 2 * 64
    assert images_seen(teacher, data, tmp_path / "kept", epochs=5, objectives=terms, teacher_views=2) == 2 * 64
    early = [{"name": "kd", "until_epoch": 1}, {"name": "sla"}]
    assert images_seen(teacher, data, tmp_path / "early", epochs=5, objectives=early, teacher_views=3) == 3 * 64
    assert images_seen(teacher, data, tmp_path / "hard", epochs=5, objectives=terms, hard=0.3) == 5 * 64


@pytest.mark.parametrize("objective", ["kd", "kdpp"])
def test_one_cached_view_trains_like_a_live_teacher_without_augmentation(train: Train, objective: str) -> None:
    options = {"objective": objective, "augment": {}, "epochs": 4}
    cached, _, _ = train(folder="cached", teacher_views=1, **options)
    live, _, _ = train(folder="live", teacher_views=0, **options)
    for name, value in cached.state_dict().items():
        torch.testing.assert_close(value, live.state_dict()[name], rtol=1e-3, atol=1e-4)


def test_views_beyond_the_capacity_are_asked_live_and_that_is_said(
    tmp_path: Path, data: Dataset, teacher: nn.Module, train: Train
) -> None:
    one_view_mib = 64 * 4 * 4 / 2**20
    options = {"epochs": 6, "teacher_views": 3, "teacher_cache_mib": 2 * one_view_mib}
    assert images_seen(teacher, data, tmp_path / "a", **options) == (3 + 1) * 64
    none = {**options, "teacher_cache_mib": one_view_mib / 2}
    assert images_seen(teacher, data, tmp_path / "b", **none) == 6 * 64
    bounded, report, _ = train(folder="bounded", **options)
    assert report.decisions[1].startswith("The teacher's outputs on 2 of 3 views fit into")
    whole, _, _ = train(folder="whole", epochs=6, teacher_views=3)
    for name, value in bounded.state_dict().items():
        torch.testing.assert_close(value, whole.state_dict()[name], rtol=1e-3, atol=1e-4)


def test_a_cache_gives_back_the_bits_it_was_given(tmp_path: Path) -> None:
    shapes = {Signal.LOGITS: (3,), Signal.EMBEDDING: (2, 2)}
    cache = TeacherCache(tmp_path, views=2, samples=5, shapes=shapes)
    assert not cache.exists()
    cache.create()
    assert cache.exists()
    cache.open()
    ids = np.array([4, 0, 2])
    outputs = {Signal.LOGITS: torch.randn(3, 3), Signal.EMBEDDING: torch.randn(3, 2, 2)}
    cache.write(1, ids, outputs)
    cache.flush()
    again = TeacherCache(tmp_path, views=2, samples=5, shapes=shapes)
    again.open()
    picked = again.read(1, ids[::-1])
    for signal, value in outputs.items():
        assert torch.equal(picked[signal], value.flip(0))
    assert not TeacherCache(tmp_path, views=3, samples=5, shapes=shapes).exists()


def test_a_cache_that_does_not_fit_on_the_disk_is_an_error(tmp_path: Path) -> None:
    cache = TeacherCache(tmp_path, views=1000, samples=10**9, shapes={Signal.LOGITS: (1000,)})
    with pytest.raises(UserError, match=r"for 1000 views need .* MiB are free"):
        cache.create()


def test_class_means_are_those_of_the_images_without_augmentation(data: Dataset, teacher: nn.Module) -> None:
    fabric = start_fabric(Execution(device="cpu"), "32-true", SilentReporter())
    needs = frozenset({Signal.LOGITS, Signal.EMBEDDING})
    asked = Teacher(SignalSource(teacher, needs, INPUT).eval(), needs, fabric)
    means = class_means(asked.survey(data.train, PREPROCESSING, 7, SilentReporter()), 4)
    labels = data.train.labels
    assert labels is not None
    images = torch.from_numpy(preprocess(data.train.images(range(64), PREPROCESSING), PREPROCESSING))
    source = SignalSource(teacher, needs, INPUT).eval()
    embedding = source(images).embedding
    assert embedding is not None
    for number in range(4):
        torch.testing.assert_close(means[number], embedding[torch.from_numpy(labels == number)].mean(0))
