"""What to say of a training whose loss is no longer finite: which term it was, and what is left of the training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgekd.errors import BuildFailed
from edgekd.train.lesson import SUPERVISED, TEACHER

_HINT = "lower lr, add warmup_epochs or distill_warmup_epochs, or limit the gradient with grad_clip=1"


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
    weighted = {label: weight * before[label] for label, weight in terms.items() if label in before}
    total = sum(abs(value) for value in weighted.values())
    if not total:
        return ""
    label = max(weighted, key=lambda name: abs(weighted[name]))
    return f" Before that, {_named(label)} made up {abs(weighted[label]) / total:.0%} of the loss."


def _listed(labels: Sequence[str]) -> str:
    return " and ".join(_named(label) for label in labels)


def _named(label: str) -> str:
    own = {SUPERVISED: "the cross-entropy", TEACHER: "the loss of the teacher that is trained along"}
    return own.get(label, f"the term {label!r}")
