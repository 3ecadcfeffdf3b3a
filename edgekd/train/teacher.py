"""The teacher in a training: its stored answers where there are any; else live while a view is new, then cached."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgekd.core.events import Reporter
from edgekd.core.preprocess import Preprocessing
from edgekd.data.batches import eval_batches
from edgekd.data.dataset import Split
from edgekd.errors import UserError
from edgekd.train.answers import Answers
from edgekd.train.batches import TrainBatch
from edgekd.train.engine import Fabric
from edgekd.train.group import GroupSource
from edgekd.train.objective import full_precision
from edgekd.train.signal import TAPPED, Signal, Signals, SignalSpec, signals_from_flat
from edgekd.train.signals import SignalSource
from edgekd.train.survey import Survey, SurveyBatch
from edgekd.train.teacher_cache import TeacherCache


class Teacher:
    """A frozen network that answers per batch.

    Args:
        source: In evaluation mode, on the training device; None where only its answers are at hand.
        needs: Signals that objectives read.
        fabric: Device and autocast.
        answers: Its signals on the views, made before the training; it is asked itself about views they lack.
        views: After so many epochs the views repeat.

    Attributes:
        cache: Empty or partly filled by an interrupted run; None for a teacher that is always live.
        decisions: What is to be said of it, one sentence each.
    """

    def __init__(
        self,
        source: SignalSource | GroupSource | None,
        needs: frozenset[Signal],
        fabric: Fabric,
        answers: Answers | None = None,
        views: int = 0,
    ) -> None:
        self._source = source
        self._answers = answers
        self._views = views
        self.cache: TeacherCache | None = None
        self.decisions: tuple[str, ...] = ()
        self._needs = (needs & TAPPED) | {Signal.LOGITS}
        self._fabric = fabric
        self._same_for_all: dict[str, Tensor] = {}

    @property
    def source(self) -> SignalSource | GroupSource:
        """The network.

        Raises:
            UserError: There are only answers on the images of the training.
        """
        if self._source is None:
            raise UserError(
                "Of the teacher there are only stored answers on the training's images, and it is asked about others.",
                hint="connect the teacher too, or choose an objective that does not ask for more: kd, for example",
            )
        return self._source

    def spec(self) -> SignalSpec:
        """Sizes of its signals."""
        if self._source is None and self._answers is not None:
            return SignalSpec(classes=self._answers.classes)
        return self.source.spec()

    @torch.no_grad()
    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """The signals of a batch by the names of `Signals.flat`, at least float32."""
        with self._fabric.autocast():
            out: Signals = self.source(images)
        return self._named(out)

    def answer(self, batch: TrainBatch, epoch: int) -> dict[str, Tensor]:
        """The signals of a training batch by the names of `Signals.flat`: of its very pixels, computed or stored."""
        device = batch.images.device
        if self._answers is not None and epoch % self._answers.views < self._answers.stored:
            found = self._answers.read(epoch % self._answers.views, batch.ids)
            return {name: x.to(device) for name, x in found.items()} | self._constant()
        view = epoch % self._views if self._views else epoch
        if self.cache is None or view >= self.cache.views:
            return self.outputs(batch.images)
        if epoch >= self._views:
            return {name: x.to(device) for name, x in self.cache.read(view, batch.ids).items()} | self._constant()
        answer = self.outputs(batch.images)
        self.cache.write(view, batch.ids, answer)
        return answer

    def keeps(self, epoch: int) -> bool:
        """Whether later epochs read what it answers in this one."""
        return self.cache is not None and epoch < self._views and epoch < self.cache.views

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one image's output, by name; only what differs from image to image."""
        return {name: tuple(x.shape[1:]) for name, x in self._named(self.source.example()).items() if _per_image(name)}

    def survey(
        self,
        split: Split,
        p: Preprocessing,
        batch_size: int,
        reporter: Reporter,
        rows: npt.NDArray[np.int64] | None = None,
    ) -> Survey:
        """The signals on a split, or on some rows of it, not augmented; each pass runs the teacher once."""
        device, ids = self._fabric.device, np.arange(len(split)) if rows is None else rows

        def batches() -> Iterator[SurveyBatch]:
            reporter.message("Asks the teacher about every training image without augmentation, in one pass.")
            for images, numbers, positions in eval_batches(split.subset(ids), p, batch_size):
                labels = None if numbers is None else torch.from_numpy(numbers).to(device)
                said = self.outputs(torch.from_numpy(images).to(device))
                yield SurveyBatch(signals_from_flat(said), labels, torch.from_numpy(ids[positions]).to(device))

        return Survey(batches=batches)

    def _constant(self) -> dict[str, Tensor]:
        """What is the same for every image: the classifier, where it is needed."""
        if Signal.CLASSIFIER in self._needs and not self._same_for_all:
            said = self._named(self.source.example())
            self._same_for_all = {name: x for name, x in said.items() if not _per_image(name)}
        return self._same_for_all

    def _named(self, out: Signals) -> dict[str, Tensor]:
        return {name: full_precision(x).detach() for name, x in out.flat().items()}


def _per_image(name: str) -> bool:
    return f"{Signal.CLASSIFIER}." not in name
