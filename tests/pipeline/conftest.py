"""One trained world for all tests of the pipeline; each gets a folder of its own to work in."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.pipeline.world import World, make_world


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def world(trained: World, tmp_path: Path) -> World:
    for path in (trained.model, trained.data):
        shutil.copy(path, tmp_path)
    return World(tmp_path, tmp_path / "model.pt", tmp_path / "data.npz")
