"""The teacher in a training: its stored answers where there are any; else live while a view is new, then cached."""

from __future__ import annotations

import torch
from torch import Tensor

from edgekd.core.preprocess import Preprocessing
from edgekd.data.batches import eval_batches
from edgekd.data.dataset import Split
from edgekd.train.answers import Answers
from edgekd.train.batches import TrainBatch
from edgekd.train.engine import Fabric
from edgekd.train.objective import TAPPED, Signal, Signals, full_precision, present
from edgekd.train.signals import SignalSource
from edgekd.train.teacher_cache import TeacherCache


class Teacher:
    """A frozen network that answers per batch.

    Args:
        source: In evaluation mode, on the training device.
        needs: Signals that the objective reads.
        fabric: Its autocast is used.
        answers: Its logits on every view, made before the training; then it is never asked itself.

    Attributes:
        cache: Empty or partly filled by an interrupted run; None for a teacher that is always live.
    """

    def __init__(
        self, source: SignalSource, needs: frozenset[Signal], fabric: Fabric, answers: Answers | None = None
    ) -> None:
        self.source = source
        self._answers = answers
        self.cache: TeacherCache | None = None
        self._needs = (needs & TAPPED) | {Signal.LOGITS}
        self._fabric = fabric

    @torch.no_grad()
    def outputs(self, images: Tensor) -> dict[Signal, Tensor]:
        """The signals of a batch, at least float32."""
        with self._fabric.autocast():
            out: Signals = self.source(images)
        return self._named(out)

    def answer(self, batch: TrainBatch, epoch: int) -> dict[Signal, Tensor]:
        """The signals of a training batch: of the very pixels in it, whether computed or stored."""
        if self._answers is not None:
            found = self._answers.read(epoch % self._answers.views, batch.ids)
            return {signal: x.to(batch.images.device) for signal, x in found.items()}
        if self.cache is None:
            return self.outputs(batch.images)
        view = epoch % self.cache.views
        if epoch >= self.cache.views:
            return {signal: x.to(batch.images.device) for signal, x in self.cache.read(view, batch.ids).items()}
        answer = self.outputs(batch.images)
        self.cache.write(view, batch.ids, answer)
        return answer

    def shapes(self) -> dict[Signal, tuple[int, ...]]:
        """Shape of one image's output, by signal."""
        return {signal: tuple(x.shape[1:]) for signal, x in self._named(self.source.example()).items()}

    def class_means(self, split: Split, p: Preprocessing, batch_size: int) -> Tensor:
        """(K, D) float32: mean embedding per class over a labelled split, not augmented; 0 for an empty class."""
        shape = self.shapes()
        classes, width = shape[Signal.LOGITS][0], shape[Signal.EMBEDDING][0]
        sums = torch.zeros(classes, width, dtype=torch.float64)
        counts = torch.zeros(classes, dtype=torch.float64)
        device = next(self.source.parameters()).device
        for images, numbers, _ in eval_batches(split, p, batch_size):
            labels = torch.from_numpy(present(numbers, Signal.LABELS))
            embedding = self.outputs(torch.from_numpy(images).to(device))[Signal.EMBEDDING]
            sums.index_add_(0, labels, embedding.cpu().double())
            counts += torch.bincount(labels, minlength=classes)
        return (sums / counts.clamp_min(1)[:, None]).float()

    def _named(self, out: Signals) -> dict[Signal, Tensor]:
        found = {
            Signal.LOGITS: out.logits,
            Signal.EMBEDDING: out.embedding,
            Signal.FEATURE_MAP: out.feature_map,
            Signal.CLASS_MAPS: out.class_maps,
        }
        return {signal: full_precision(present(found[signal], signal)) for signal in sorted(self._needs)}
