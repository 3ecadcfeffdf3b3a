"""What no test may depend on: the calibrations of whoever runs it, and what was drawn before it."""

from __future__ import annotations

import sys

import pytest

from edgekd.targets.calibration import FOLDER_VARIABLE
from tests.runtimes.engines.boards import cuda_libraries, fake_board, fake_trtexec, gpu

__all__ = ["cuda_libraries", "fake_board", "fake_trtexec", "gpu"]
"""Fixtures of several rooms: a TensorRT that is not there."""


@pytest.fixture(autouse=True, scope="session")
def no_calibrations(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The folder of calibrations is an empty one, in this process and in those that tests start."""
    patch = pytest.MonkeyPatch()
    patch.setenv(FOLDER_VARIABLE, str(tmp_path_factory.mktemp("calibrations")))


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """Torch's global generator starts alike in every test, alone or after others."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.default_generator.manual_seed(0)
