"""What no test may depend on: the calibrations of whoever runs it."""

from __future__ import annotations

import pytest

from edgekd.targets.calibration import FOLDER_VARIABLE


@pytest.fixture(autouse=True, scope="session")
def no_calibrations(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The folder of calibrations is an empty one, in this process and in those that tests start."""
    patch = pytest.MonkeyPatch()
    patch.setenv(FOLDER_VARIABLE, str(tmp_path_factory.mktemp("calibrations")))
