"""One training step's computation as one module, so that one wrapper (autocast, DDP) covers all that has gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.data.dataset import UNLABELLED
from edgekd.tasks.classification import summed_loss, supervised_loss
from edgekd.train.gather import mean_over_processes
from edgekd.train.loss_plan import Term
from edgekd.train.objective import present
from edgekd.train.peer import Peer, detached, untouched
from edgekd.train.signal import Signal, Signals, signals_from_flat
from edgekd.train.signals import SignalSource

LOSS, SUPERVISED, TEACHER, HITS, LABELLED, IMAGES = "loss", "supervised", "teacher", "hits", "labelled", "images"
_LEAST = 1e-9


class Lesson(nn.Module):
    """Student and objectives, and the teacher where it is trained along.

    Then the loss is the sum of the student's and the teacher's, each of the other's answers without gradient: neither
    network is moved by the other's loss.

    Args:
        student: The network that learns.
        terms: The objectives, bound; none for supervised training.
        label_smoothing: Of the cross-entropy.
        joint: Whether several processes train one student. Then the parameters of an objective that is left out get
            gradients of zero, for DDP waits for each of them; `forget_idle_gradients_` takes them away again.
        peer: The teacher that is trained along; None for one that answers from outside, and where there is none.
        partly: Whether some images have no label. Cross-entropy and correct answers are then means over the others of
            the batch, in all processes together; a batch without a label has a cross-entropy of 0 without gradients.

    Attributes:
        answers: The student's and the teacher's logits of the last step without gradients, where `keeps_answers` is set
            and there is a teacher.
        statistics: Names of what a step reports, summed over its samples: the loss that is minimised, the
            cross-entropy, each objective without its weight (0 while it is left out), the whole loss of a teacher that
            is trained along, correct answers, labels where not all images have one, images.
    """

    def __init__(
        self,
        student: SignalSource,
        terms: Sequence[Term],
        label_smoothing: float,
        *,
        joint: bool = False,
        peer: Peer | None = None,
        partly: bool = False,
    ) -> None:
        super().__init__()
        self.student = student
        self.peer = peer
        self._terms = tuple(term.objective for term in terms)
        self.objectives = nn.ModuleList(self._terms)
        self.label_smoothing = label_smoothing
        own = () if peer is None else (TEACHER,)
        known = (LABELLED,) if partly else ()
        self.statistics = (LOSS, SUPERVISED, *(term.label for term in terms), *own, HITS, *known, IMAGES)
        self.keeps_answers = False
        self.answers: tuple[Tensor, Tensor] | None = None
        self._joint = joint
        self._partly = partly

    def forward(
        self,
        images: Tensor,
        labels: Tensor | None,
        ids: Tensor,
        teacher: Mapping[str, Tensor] | None,
        supervised_weight: float,
        weights: Sequence[float],
        expected: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The loss to minimise, a scalar, and float32 detached sums in the order of `statistics`.

        Args:
            images: (N, C, H, W).
            labels: (N,) int64, (N, K) shares of mixed images, or None. Without a label: `UNLABELLED`, no shares.
            ids: (N,) int64, positions in the training split.
            teacher: The teacher's signals by the names of `Signals.flat`; None where there is no teacher, or a peer, or
                nothing reads them.
            supervised_weight: Of the cross-entropy.
            weights: Of each objective in this step; one of weight 0 is left out.
            expected: By what the cross-entropy is divided where some images have no label; None takes the labels of
                these images, as the mean over the processes. See `labels_expected`.
        """
        out, more = self.said(images, weights)
        out = replace(out, ids=ids)
        peer = self.peer(images, weights) if self.peer is not None and self.reads_teacher(labels, weights) else None
        taught = _answers(teacher, peer)
        if self.keeps_answers and taught is not None:
            self.answers = out.logits.detach(), taught.logits
        zero = torch.zeros((), device=images.device)
        cost, supervised, known = self._supervised(out.logits, labels, expected)
        loss = supervised_weight * cost
        hard = labels if labels is not None and labels.ndim == 1 else None
        values = []
        for objective, weight, views in zip(self.objectives, weights, more, strict=True):
            if not weight:
                loss = loss + untouched(objective) if self._joint else loss
                values.append(zero)
                continue
            said = replace(out, more=views) if views else out
            value: Tensor = objective(said, taught if objective.needs_teacher else None, hard)
            loss = loss + weight * value
            values.append(value.detach())
        if self.peer is not None:
            own = self.peer.loss(detached(out), peer, labels, supervised_weight, weights)
            loss = loss + own
            values.append(own.detach())
        with torch.no_grad():
            reference = hard
            if hard is None and (labels is not None or teacher is not None):
                reference = (labels if labels is not None else present(teacher, "teacher")[Signal.LOGITS]).argmax(1)
            right = zero if reference is None else (out.logits.argmax(1) == reference).float()
            counted = [right.mean()] if known is None else [(right * known).mean(), known.mean()]
            statistics = torch.stack([x.float() for x in (loss, supervised, *values, *counted, zero + 1)])
        return loss, statistics * len(images)

    def reads_teacher(self, labels: Tensor | None, weights: Sequence[float]) -> bool:
        """Whether a step of these weights reads the teacher's answers; without labels they count the correct ones."""
        asked = any(weight and objective.needs_teacher for objective, weight in zip(self._terms, weights, strict=True))
        return asked or labels is None or self.keeps_answers

    def labels_expected(self, labels: Tensor | None) -> Tensor | None:
        """Labels per image of a whole batch, as the mean over the processes; None where all or none have one.

        With it each of a batch's micro-batches divides by its share of the batch's labels, not by how many it happens
        to have, so that their cross-entropies, weighted by their sizes, sum to that of the batch.
        """
        if labels is None or not self._partly:
            return None
        known = labels.sum() if labels.ndim == 2 else (labels != UNLABELLED).sum().float()
        return mean_over_processes(known) / len(labels)

    def _supervised(
        self, logits: Tensor, labels: Tensor | None, expected: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Cross-entropy to minimise, its sum per image and, unless all labels are known, how much of each, (N,)."""
        if labels is None:
            zero = torch.zeros((), device=logits.device)
            return zero, zero, None
        if not self._partly:
            mean = supervised_loss(logits, labels, self.label_smoothing)
            return mean, mean.detach(), None
        shares = shares_of(labels, logits.shape[1])
        known = shares.sum(1)
        total = summed_loss(logits, shares, self.label_smoothing)
        # DDP takes the mean of the processes' gradients, so each divides by their mean number of labels, not its own.
        expected = mean_over_processes(known.sum()) if expected is None else expected
        cost = total / expected.clamp_min(_LEAST)
        return cost, total.detach() / len(logits), known

    def forget_idle_gradients_(self, weights: Sequence[float]) -> None:
        """After the backward pass: nothing that was left out is moved by weight decay or momentum."""
        for objective, weight in zip(self.objectives, weights, strict=True):
            if not weight:
                objective.zero_grad(set_to_none=True)
        if self.peer is not None and not self.peer.learns(weights):
            self.peer.zero_grad(set_to_none=True)

    def networks(self) -> tuple[list[nn.Parameter], ...]:
        """Parameters of what learns by a loss of its own: student and objectives; and the teacher trained along."""
        peer = [] if self.peer is None else list(self.peer.parameters())
        theirs = {id(parameter) for parameter in peer}
        ours = [parameter for parameter in self.parameters() if id(parameter) not in theirs]
        return (ours, peer) if peer else (ours,)

    def said(
        self, images: Tensor, weights: Sequence[float], student: Callable[[Tensor], Signals] | None = None
    ) -> tuple[Signals, list[tuple[Signals, ...]]]:
        """What the student says of the batch, and of the further views that each active objective asked for.

        One pass over all of them, so that BatchNorm normalises by what its running statistics will hold.

        Args:
            images: (N, C, H, W).
            weights: Of each objective; one of weight 0 is not active.
            student: Asked in the student's place: the student with other weights.
        """
        student = student or self.student
        objectives: list[Any] = list(self.objectives)
        asked = [o.more_images(images) if weight else () for o, weight in zip(objectives, weights, strict=True)]
        views = [images, *(view for several in asked for view in several)]
        if len(views) == 1:
            return student(images), [() for _ in asked]
        fast = images.is_contiguous(memory_format=torch.channels_last)
        together = torch.cat(views).contiguous(memory_format=torch.channels_last if fast else torch.contiguous_format)
        said = student(together)
        parts = iter(said.rows(slice(first, first + len(images))) for first in range(0, len(together), len(images)))
        out = next(parts)
        return out, [tuple(next(parts) for _ in several) for several in asked]


def _answers(teacher: Mapping[str, Tensor] | None, peer: Signals | None) -> Signals | None:
    """What the student's objectives see of a teacher: of a peer, what it says now, without gradients."""
    if peer is not None:
        return detached(peer)
    return None if teacher is None else signals_from_flat(teacher)


def shares_of(labels: Tensor, classes: int) -> Tensor:
    """(N, K) float32: one-hot labels, nothing for an image without one; (N, K) shares of mixed images as they are."""
    if labels.ndim == 2:
        return labels
    return nn.functional.one_hot(labels.clamp_min(0), classes).float() * (labels != UNLABELLED)[:, None]
