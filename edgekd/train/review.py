"""What an objective sees of the student when its training is over, and what it says of what it did then."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from edgekd.core.digest import Json
from edgekd.train.signal import Classifier, Signals


class ReviewBatch(NamedTuple):
    """Some images without augmentation.

    Attributes:
        student: What the trained student says, without gradients: the signals that some objective needs.
        labels: (N,) int64, on the student's device; `UNLABELLED` for training images without one.
    """

    student: Signals
    labels: Tensor


@dataclass(frozen=True, kw_only=True)
class Review:
    """The trained student on images without augmentation; each pass runs it anew.

    Attributes:
        classifier: The parameters of its last layer, (K, D) and (K,), to be written in place. Its product with the
            embedding, plus the bias, is the logits.
        training: Begins a pass over training images, at most as many as asked for: always the same ones.
        select: Begins a pass over the `select` split, where decisions are taken; all of it has labels.
    """

    classifier: Classifier
    training: Callable[[int], Iterator[ReviewBatch]]
    select: Callable[[], Iterator[ReviewBatch]]


@dataclass(frozen=True, kw_only=True)
class Conclusion:
    """What was done.

    Attributes:
        metrics: Numbers for the run's report.
        decisions: What was decided and why, one sentence each.
    """

    metrics: Mapping[str, Json] = field(default_factory=dict)
    decisions: tuple[str, ...] = ()
