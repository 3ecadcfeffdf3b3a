"""One training step's computation as one module, so that one wrapper (autocast, DDP) covers all that has gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.tasks.classification import supervised_loss
from edgekd.train.objective import Objective, Signal
from edgekd.train.signal import signals_from_flat
from edgekd.train.signals import SignalSource

STATISTICS = ("loss", "supervised", "distill", "hits", "images")
"""What a step reports, summed over its samples."""


class Lesson(nn.Module):
    """Student and objective.

    Args:
        student: The network that learns.
        objective: Compares it with the teacher; None for supervised training.
        label_smoothing: Of the cross-entropy.
    """

    def __init__(self, student: SignalSource, objective: Objective[Any] | None, label_smoothing: float) -> None:
        super().__init__()
        self.student = student
        self.objective = objective
        self.label_smoothing = label_smoothing

    def forward(
        self,
        images: Tensor,
        labels: Tensor | None,
        ids: Tensor,
        teacher: Mapping[str, Tensor] | None,
        supervised_weight: float,
        distill_weight: float,
    ) -> tuple[Tensor, Tensor]:
        """The loss to minimise, a scalar, and (5,) float32 detached sums in the order of `STATISTICS`.

        Args:
            images: (N, C, H, W).
            labels: (N,), or None.
            ids: (N,) int64, positions in the training split.
            teacher: The teacher's signals by the names of `Signals.flat`; None where there is no teacher.
            supervised_weight: Of the cross-entropy.
            distill_weight: Of the objective, fade-in included.
        """
        out = self.student(images)
        zero = torch.zeros((), device=images.device)
        supervised = distill = zero
        reference = labels
        if labels is not None:
            supervised = supervised_loss(out.logits, labels, self.label_smoothing)
        if teacher is not None and labels is None:
            reference = teacher[Signal.LOGITS].argmax(1)
        if self.objective is not None:
            given = signals_from_flat(teacher) if teacher is not None and self.objective.needs_teacher else None
            distill = self.objective(replace(out, ids=ids), given, labels)
        loss = supervised_weight * supervised + distill_weight * distill
        with torch.no_grad():
            hits = zero if reference is None else (out.logits.argmax(1) == reference).float().mean()
            statistics = torch.stack([loss.detach(), supervised.detach(), distill.detach(), hits, zero + 1]).float()
        return loss, statistics * len(images)
