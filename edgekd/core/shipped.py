"""Where the data files lie that come with edgekd: target cards and calibration cards.

In the repository they stand at the top, where people look for them; `setup.py` copies them into a wheel beside the
code. One function knows both places.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

_PACKAGE = Path(__file__).resolve().parent.parent


def shipped_folder(name: Literal["targets", "calibration"]) -> Path:
    """The folder of the shipped cards: `edgekd/shipped/NAME` when installed, the repository's `NAME` otherwise."""
    installed = _PACKAGE / "shipped" / name
    return installed if installed.is_dir() else _PACKAGE.parent / name
