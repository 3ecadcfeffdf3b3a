"""What a loss of accuracy is, how sure one can be of it, and how limits are put into words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgekd.core.report import Budget, Evaluation, Metric
from edgekd.core.schema import Schema
from edgekd.core.text import percent, points

BETTER: dict[Metric, str] = {
    "top1": "more accurate",
    "agreement": "in better agreement with the teacher",
    "outputs": "nearer to the reference",
}
"""What a candidate with a larger value is called."""
ROUNDING = 1e-9
"""Accuracies are ratios of counts: 299/300 less 296/300 is one point, and a little more in floating point."""


class Loss(Schema):
    """How much of the metric a candidate lost against the reference; negative when it gained.

    Attributes:
        value: In the budget's drop type: an absolute difference, or a share of the reference's value.
        low: Lower end of its 95 % interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    def keeps(self, limit: float) -> bool:
        """Whether no more than `limit` was lost."""
        return self.value <= limit + ROUNDING


def loss_from_evaluations(candidate: Evaluation, reference: Evaluation | None, budget: Budget) -> Loss | None:
    """The loss of `candidate` against `reference`; None when it cannot be told.

    The interval is Newcombe's score interval of a difference (Statistics in Medicine 17, 1998, method 10), which takes
    the two values as independent. Both come from the same images and move together, so it is wider than need be.

    Args:
        candidate: The engine that is judged.
        reference: The teacher on the same split. Only accuracy needs one: the teacher always agrees with itself.
        budget: Decides between absolute and relative.
    """
    if reference is not None and (reference.metric, reference.split) == (candidate.metric, candidate.split):
        top, top_low, top_high = reference.value, reference.low, reference.high
    elif candidate.metric != "top1":
        top = top_low = top_high = 1.0
    else:
        return None
    value = top - candidate.value
    low = value - math.hypot(top - top_low, candidate.high - candidate.value)
    high = value + math.hypot(top_high - top, candidate.value - candidate.low)
    scale = top if budget.drop_type == "relative" and top > 0 else 1.0
    return Loss(value=value / scale, low=low / scale, high=high / scale)


def evaluation_of(
    evaluations: Sequence[Evaluation], candidate: str, split: str, runtime: str | None = None
) -> Evaluation | None:
    """The evaluation of a candidate on a split, in one runtime or in the first one; None when there is none."""
    found = (e for e in evaluations if e.candidate == candidate and e.split == split)
    return next((e for e in found if runtime is None or e.runtime == runtime), None)


def amount_text(value: float, budget: Budget) -> str:
    """A loss in the budget's unit: `0.6 points`, or `0.7 %` of the reference."""
    return percent(value) if budget.drop_type == "relative" else points(value)


def loss_text(loss: Loss, budget: Budget) -> str:
    """`0.6 points lost (95 % interval -0.5 to 1.7)`."""
    # A gain is a negative loss: its interval turns around with it.
    low, high = (-loss.high, -loss.low) if loss.value < 0 else (loss.low, loss.high)
    interval = f"95 % interval {100 * low:.1f} to {100 * high:.1f}"
    word = "gained" if loss.value < 0 else "lost"
    return f"{amount_text(abs(loss.value), budget)} {word} ({interval})"
