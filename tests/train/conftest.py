"""A tiny training: 8x8 images, networks of two blocks, a few dozen steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from edgekd.core.events import RecordingReporter
from edgekd.core.stage import Context
from edgekd.data.dataset import Dataset
from edgekd.testing.harness import make_context
from edgekd.testing.toy_data import toy_dataset
from edgekd.testing.toys import toy_cnn, toy_recipe
from edgekd.train.config import TrainConfig
from edgekd.train.fit import FitReport, distil_

PREPROCESSING = toy_recipe().preprocessing
SMALL = {"epochs": 3, "batch_size": 16, "lr": 0.05, "augment": {"pad_px": 1, "flip": True}}


def config(**options: Any) -> TrainConfig:
    """A short training; `options` replace its values."""
    return TrainConfig.parse({**SMALL, **options}, "test")


def events(ctx: Context, kind: str) -> list[dict[str, Any]]:
    """The events of a kind that a context's reporter got."""
    assert isinstance(ctx.reporter, RecordingReporter)
    return [dict(event) for event in ctx.reporter.events if event["event"] == kind]


@pytest.fixture(scope="session")
def data() -> Dataset:
    """80 labelled images, 64 of them for training."""
    return toy_dataset(n=80)


@pytest.fixture(scope="session")
def unlabelled() -> Dataset:
    return toy_dataset(n=80, labelled=False)


@pytest.fixture(scope="session")
def teacher(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    """A network that knows the toy data."""
    network = toy_cnn(seed=7)
    distil_(network, None, data, PREPROCESSING, config(epochs=12), make_context(tmp_path_factory.mktemp("teacher")))
    return network


Train = Callable[..., tuple[nn.Module, FitReport, Context]]


@pytest.fixture
def train(tmp_path: Path, data: Dataset, teacher: nn.Module) -> Train:
    """Trains a fresh student; returns it, the report and the context. Options of the config go by keyword."""

    def run(
        *,
        student: nn.Module | None = None,
        taught: bool = True,
        on: Dataset = data,
        folder: str = "run",
        seed: int = 0,
        **options: Any,
    ) -> tuple[nn.Module, FitReport, Context]:
        student = student or toy_cnn(seed=1)
        ctx = make_context(tmp_path / folder, seed=seed)
        report = distil_(student, teacher if taught else None, on, PREPROCESSING, config(**options), ctx)
        return student, report, ctx

    return run
