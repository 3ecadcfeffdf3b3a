"""Checkpoints of a training: whole or absent on the disk, read without running code, rarely written."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edgekd.core.blobs import disk_errors
from edgekd.core.digest import Digest
from edgekd.core.events import Reporter

FILE = "training.ckpt"


@dataclass(frozen=True, kw_only=True)
class Rhythm:
    """How often to save. A kill loses at most `within_epoch_s` of work; saving costs well below one percent.

    Attributes:
        epoch_s: At the end of an epoch, when the last checkpoint is at least this old.
        within_epoch_s: Anywhere, when the last checkpoint is at least this old.
    """

    epoch_s: float = 5.0
    within_epoch_s: float = 60.0


class Checkpoints:
    """The newest checkpoint of one training.

    Args:
        folder: The scratch folder.
        fingerprint: Of everything that the training depends on; a checkpoint with another one is not used.
        reporter: Told when a checkpoint is not used.
        rhythm: How often to save.
        clock: Seconds; injected by tests.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: Digest,
        reporter: Reporter,
        rhythm: Rhythm,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = folder / FILE
        self._fingerprint = fingerprint
        self._reporter = reporter
        self._rhythm = rhythm
        self._clock = clock
        self._saved_at = clock()
        self._holds = False

    def load(self) -> dict[str, Any] | None:
        """The state that `save` was given, on the CPU, or None when there is none that fits."""
        if not self._path.exists():
            return None
        try:
            state = torch.load(self._path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as err:
            self._reporter.message(f"Starts anew: the checkpoint {self._path} cannot be read ({err}).", level="warning")
            return None
        if state.pop("fingerprint", None) != self._fingerprint:
            self._reporter.message(f"Starts anew: {self._path} belongs to another training.", level="warning")
            return None
        self._holds = True
        return dict(state)

    def kept(self) -> Path | None:
        """Where the newest checkpoint that this training wrote or took up is, None when there is none."""
        return self._path if self._holds else None

    def give_up(self) -> None:
        """What was taken up belongs to no training any more: it is of no use and will be replaced."""
        self._holds = False

    def discard(self) -> None:
        """Deletes the file, whichever training it belongs to: before something is overwritten that it relies on."""
        with disk_errors(self._path):
            self._path.unlink(missing_ok=True)
        self.give_up()

    def due(self, *, epoch_ended: bool) -> bool:
        """Whether it is time to save."""
        age = self._clock() - self._saved_at
        return age >= (self._rhythm.epoch_s if epoch_ended else self._rhythm.within_epoch_s)

    def save(self, state: dict[str, Any]) -> None:
        """Replaces the checkpoint in one step: a kill leaves the old one or the new one.

        Raises:
            UserError: The disk is full or read-only.
        """
        new = self._path.with_suffix(".new")
        with disk_errors(self._path):
            with new.open("wb") as stream:
                torch.save({"fingerprint": str(self._fingerprint), **state}, stream)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(new, self._path)
        self._holds = True
        self._saved_at = self._clock()
