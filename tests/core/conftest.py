"""Fixtures of the engine's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.core.runner import Runner
from edgekd.core.store import LocalStore
from tests.core import fakes


@pytest.fixture(autouse=True)
def _fresh() -> None:
    """Nothing ran yet, and there is one rank."""
    fakes.ran.clear()
    fakes.ranks.clear()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Folder of a store that does not exist yet."""
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> LocalStore:
    return LocalStore(root)


@pytest.fixture
def runner(store: LocalStore) -> Runner:
    return Runner(fakes.STAGES, store)
