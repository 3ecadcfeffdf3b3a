"""A teacher's outputs on disk, by view and sample.

Augmentation is a pure function of (seed, sample, view), so a stored output belongs to exactly the pixels the student
sees. Epoch v fills view v, and every later epoch of that view reads it: which rows are valid follows from the epoch
alone, and nothing has to be marked, merged or invalidated.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgekd.core.blobs import disk_errors
from edgekd.errors import UserError

_FLOAT32_BYTES = 4
_MIB = 1 << 20


class TeacherCache:
    """float32 arrays (views, samples, ...), memory-mapped: memory use is the page cache's business.

    Args:
        folder: Where the files lie; shared by the processes of a run.
        views: Number of views.
        samples: Images per view.
        shapes: Of one sample's output, by the names of `Signals.flat`: `{"logits": (K,)}`.
    """

    def __init__(self, folder: Path, *, views: int, samples: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.views = views
        self._folder = folder
        self._shapes = {name: (views, samples, *shape) for name, shape in shapes.items()}
        self._arrays: dict[str, np.memmap[tuple[int, ...], np.dtype[np.float32]]] = {}

    def exists(self) -> bool:
        """Whether whole files of the right size are there, from an interrupted run."""
        return all(
            self._path(name).exists() and self._path(name).stat().st_size == _size(shape)
            for name, shape in self._shapes.items()
        )

    def check_space(self) -> None:
        """Raises a `UserError` when there is not enough disk space; writes nothing."""
        needed = sum(_size(shape) for shape in self._shapes.values())
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            raise UserError(
                f"The teacher's outputs for {self.views} views need {needed / _MIB:,.0f} MiB in {self._folder}, and "
                f"{free / _MIB:,.0f} MiB are free.",
                hint="lower teacher_views, or set it to 0 for a live teacher",
            )

    def create(self) -> None:
        """Reserves the disk space, all zeros.

        Raises:
            UserError: There is not enough of it.
        """
        self.check_space()
        for name, shape in self._shapes.items():
            path = self._path(name)
            with disk_errors(path), path.open("wb") as stream:
                # Reserved now: a full disk must be an error here, not a bus error in the middle of the training.
                os.posix_fallocate(stream.fileno(), 0, _size(shape))

    def open(self) -> None:
        """Maps the files."""
        for name, shape in self._shapes.items():
            self._arrays[name] = np.memmap(self._path(name), dtype=np.float32, mode="r+", shape=shape)

    def write(self, view: int, ids: npt.NDArray[np.int64], outputs: Mapping[str, Tensor]) -> None:
        """Keeps the outputs of some samples of a view."""
        for name, array in self._arrays.items():
            array[view][ids] = outputs[name].cpu().numpy()

    def read(self, view: int, ids: npt.NDArray[np.int64]) -> dict[str, Tensor]:
        """The outputs of some samples of a view, on the CPU, as they were written."""
        return {name: torch.from_numpy(np.asarray(array[view])[ids]) for name, array in self._arrays.items()}

    def flush(self) -> None:
        """Writes through to the disk; afterwards a checkpoint may rely on what was written."""
        for array in self._arrays.values():
            array.flush()

    def _path(self, name: str) -> Path:
        return self._folder / f"teacher-{name}.f32"


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape)) * _FLOAT32_BYTES
