"""Small folders of images, and the preprocessing that most tests use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgekd.core.preprocess import Preprocessing

SMALL = Preprocessing(size=(8, 8), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))

FolderMaker = Callable[[dict[str, int]], Path]


@pytest.fixture
def image_folder(tmp_path: Path) -> FolderMaker:
    """Makes a folder from {"train/cat": 4}: so many different PNG files in each sub-folder."""

    def make(counts: dict[str, int]) -> Path:
        root = tmp_path / "pictures"
        for index, (place, count) in enumerate(counts.items()):
            folder = root / place
            folder.mkdir(parents=True, exist_ok=True)
            rng = np.random.default_rng(index)
            for number in range(count):
                pixels = rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number:03}.png")
        return root

    return make
