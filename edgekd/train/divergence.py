"""What to say of a training that diverged: which term it was, and what is left of the training.

As a rule the loss is then no longer finite. A network with BatchNorm can stay finite, whatever its weights grow to, and
is noticed by what it knows: `Collapse`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgekd.errors import BuildFailed
from edgekd.train.lesson import SUPERVISED, TEACHER

WORSE, CHANCE, LOST, EPOCHS = 3.0, 2.0, 0.5, 2
"""When a finite training has collapsed; see `Collapse`."""
_HINT = "lower lr, add warmup_epochs or distill_warmup_epochs, or limit the gradient with grad_clip=1"


class Collapse:
    """Watches a training with labels for one that diverged and stays finite.

    A collapse is: over two epochs in a row (`EPOCHS`), the mean cross-entropy is more than three times (`WORSE`) that
    of the best epoch, above that of the first one, and more than twice (`CHANCE`) that of guessing evenly, ln K, while
    less than half (`LOST`) as many images are classified right, beyond 1 in K, as in the best epoch.

    The whole loss would not do, for weights are faded, and terms may rise by design (`taid`); nor would the
    cross-entropy alone: with a light weight it rises where a teacher contradicts the labels, with a pretrained student
    at each warm-up. A student that learns anything is not wrong twice as surely as one that knows nothing.

    Args:
        classes: K.
    """

    def __init__(self, classes: int) -> None:
        self.even, self.guessed = math.log(classes), 1 / classes
        self.first = self.best = math.inf
        self.most_right = 0.0
        self._bad_epochs = 0

    def after_epoch(self, cross_entropy: float, right: float) -> bool:
        """Whether the training has collapsed.

        Args:
            cross_entropy: Mean over the epoch, without its weight.
            right: Share of images that were classified right, in [0, 1].
        """
        limit = max(WORSE * self.best, self.first, CHANCE * self.even)
        lost = right - self.guessed < LOST * (self.most_right - self.guessed)
        bad = math.isfinite(self.best) and cross_entropy > limit and lost
        self._bad_epochs = self._bad_epochs + 1 if bad else 0
        if not math.isfinite(self.first):
            self.first = cross_entropy
        self.best, self.most_right = min(self.best, cross_entropy), max(self.most_right, right)
        return self._bad_epochs >= EPOCHS

    def state(self) -> list[float]:
        """What a checkpoint keeps."""
        return [self.first, self.best, self.most_right, self._bad_epochs]

    def load(self, state: Sequence[float]) -> None:
        """Takes over the state of an interrupted run."""
        self.first, self.best, self.most_right = state[:3]
        self._bad_epochs = int(state[3])

    def error(
        self, place: str, means: Mapping[str, float], terms: Mapping[str, float], newest: Path | None
    ) -> BuildFailed:
        """The error of a training that collapsed.

        Args:
            place: Epoch and learning rate.
            means: Of the epoch: `supervised`, `hits` and each term by its label.
            terms: Weight of each term, by its label.
            newest: The newest checkpoint, if one was written.
        """
        said = (
            "The training diverged, though its loss stays finite: the cross-entropy was "
            f"{means[SUPERVISED]:.3g} {place} and {self.best:.3g} in the best epoch, where guessing gives "
            f"{self.even:.3g}; of the training images, {means['hits']:.0%} are classified right, and "
            f"{self.most_right:.0%} were."
        )
        if len(terms) > 1:
            label, share = _heaviest(means, terms)
            said += f" {_named(label).capitalize()} makes up {share:.0%} of the loss."
        if newest is not None:
            said += f" The newest checkpoint is kept: {newest}."
        return BuildFailed(said, hint=_HINT)


def divergence(
    place: str, sums: Mapping[str, float], before: Mapping[str, float], terms: Mapping[str, float], kept: Path | None
) -> BuildFailed:
    """The error of a training that diverged.

    Args:
        place: Epoch, step and learning rate.
        sums: What was summed up to now: the loss as `loss`, and each term by its label.
        before: The same when it was finite for the last time; empty when it never was.
        terms: Weight of each term, by its label.
        kept: The last good checkpoint, if one was written.
    """
    culprits = [label for label in terms if not math.isfinite(sums[label])]
    said = f"The loss became {sums['loss']:g} {place}."
    if 0 < len(culprits) < len(terms):
        finite = ", ".join(_named(label) for label in terms if label not in culprits)
        said += f" Not finite: {_listed(culprits)}; finite: {finite}."
    elif len(terms) > 1:
        said += " Every term is not finite, as the student's own outputs are." if culprits else ""
        said += _largest(before, terms)
    if kept is not None:
        said += f" The last good checkpoint is kept: {kept}."
    return BuildFailed(said, hint=_remedy(culprits, terms))


def _remedy(culprits: Sequence[str], terms: Mapping[str, float]) -> str:
    if culprits == [TEACHER]:
        return f"lower teacher_lr_share; or {_HINT}"
    heavy = [label for label in culprits if label not in (SUPERVISED, TEACHER)]
    if 0 < len(culprits) < len(terms) and heavy:
        return f"lower the weight of {_listed(heavy)} or fade it in over more epochs; or {_HINT}"
    return _HINT


def _largest(before: Mapping[str, float], terms: Mapping[str, float]) -> str:
    """Which term weighed most while all were finite; empty when nothing is known."""
    label, share = _heaviest(before, terms)
    return f" Before that, {_named(label)} made up {share:.0%} of the loss." if share else ""


def _heaviest(values: Mapping[str, float], terms: Mapping[str, float]) -> tuple[str, float]:
    """The term that makes up most of the loss, and its share in [0, 1]; 0 when nothing is known."""
    weighted = {label: abs(weight * values.get(label, 0.0)) for label, weight in terms.items()}
    label = max(weighted, key=lambda name: weighted[name])
    return label, weighted[label] / (sum(weighted.values()) or 1.0)


def _listed(labels: Sequence[str]) -> str:
    return " and ".join(_named(label) for label in labels)


def _named(label: str) -> str:
    own = {SUPERVISED: "the cross-entropy", TEACHER: "the loss of the teacher that is trained along"}
    return own.get(label, f"the term {label!r}")
