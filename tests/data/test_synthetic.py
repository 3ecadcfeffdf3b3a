from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgekd.core.events import RecordingReporter
from edgekd.core.preprocess import Preprocessing
from edgekd.data.synthetic import range_overlap, synthetic_images
from edgekd.data.transform import preprocess
from edgekd.errors import BuildFailed, UserError
from edgekd.testing.toy_data import toy_dataset
from tests.data.conftest import SMALL


def _net() -> nn.Module:
    """A network whose BatchNorm statistics come from the toy images, seen once in training mode."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8, momentum=None), nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8, momentum=None), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    net(torch.from_numpy(_real()))
    return net.eval()


def _real(p: Preprocessing = SMALL) -> np.ndarray:
    train = toy_dataset(n=64).train
    return preprocess(train.images(range(48), p), p)


def test_synthetic_images_have_the_ranges_of_the_training_images_where_noise_has_not() -> None:
    net, reporter = _net(), RecordingReporter()
    images = synthetic_images(net, SMALL, samples=40, steps=60, seed=0, reporter=reporter)
    noise = np.random.default_rng(0).normal(size=images.shape).astype(np.float32)
    assert images.shape == (40, 3, 8, 8)
    assert range_overlap(net, images) > 0.92 > 0.87 > range_overlap(net, noise)
    assert range_overlap(net, _real()) > 0.95
    assert reporter.events[-1]["event"] == "message"
    assert "40 synthetic images" in str(reporter.events[-1]["text"])
    assert reporter.events[-2]["done"] == reporter.events[-2]["total"] == 120


def test_the_same_seed_gives_the_same_images_and_pixels_stay_possible() -> None:
    net = _net()
    first, again, other = (
        synthetic_images(net, SMALL, samples=3, steps=4, seed=seed, reporter=RecordingReporter()) for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.min() >= -2.0 - 1e-6
    assert first.max() <= 2.0 + 1e-6


def test_the_overlap_does_not_depend_on_the_order_of_the_images() -> None:
    net, images = _net(), _real()[:40]
    assert range_overlap(net, images) == pytest.approx(range_overlap(net, images[::-1].copy()), rel=1e-5)


def test_the_network_is_left_as_it_was() -> None:
    net = _net()
    net[0].train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    synthetic_images(net, SMALL, samples=2, steps=2, seed=0, reporter=RecordingReporter())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert net[0].training
    assert not net[1].training
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_network_without_batchnorm_is_refused_with_a_hint() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    with pytest.raises(UserError, match="need BatchNorm layers") as caught:
        synthetic_images(net, SMALL, samples=2, steps=2, seed=0, reporter=RecordingReporter())
    assert caught.value.hint is not None
    assert "--data" in caught.value.hint


def test_broken_statistics_are_reported_and_not_optimised() -> None:
    net = _net()
    net[1].running_mean.fill_(float("nan"))
    with pytest.raises(BuildFailed, match="the loss became nan at step 0"):
        synthetic_images(net, SMALL, samples=2, steps=2, seed=0, reporter=RecordingReporter())


def test_nothing_to_make_is_refused() -> None:
    with pytest.raises(UserError, match="at least 1 sample and 1 step, got 0 and 5"):
        synthetic_images(_net(), SMALL, samples=0, steps=5, seed=0, reporter=RecordingReporter())
