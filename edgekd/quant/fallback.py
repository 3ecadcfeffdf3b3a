"""Leaves the most sensitive layers in float, as few as it takes to keep what INT8 loses within a limit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edgekd.core.text import points
from edgekd.quant.trial import DropType, Score

LARGEST_SHARE = 0.5
"""Of the layers that may be reverted: beyond, little is left of what INT8 is for."""


@dataclass(frozen=True, kw_only=True)
class Fallback:
    """How many layers are reverted, and how that was found.

    Attributes:
        count: Of the most sensitive layers.
        held: The limit is kept.
        trials: Score by count, in the order they were tried.
        limit: Largest loss.
        drop_type: What it counts.
    """

    count: int
    held: bool
    trials: Mapping[int, Score]
    limit: float
    drop_type: DropType

    def decision(self, names: Sequence[str]) -> str:
        """One sentence.

        Args:
            names: The layers that are reverted, the most sensitive first.
        """
        alone, found = self.trials[0], self.trials[self.count]
        what = "accuracy" if alone.top1 is not None else "agreement with FP32"
        limit = points(self.limit) if self.drop_type == "absolute" else f"{self.limit:.1%} of it"
        before, after = (self._amount(score) for score in (alone, found))
        where = f"of {what} on {found.n} calibration samples"
        if self.held and not self.count:
            return f"No layer is reverted: INT8 loses {after} {where}, and {limit} is allowed."
        layers = ", ".join(names) or "none"
        if self.held:
            stay = "layer stays" if self.count == 1 else "layers stay"
            return (
                f"{self.count} {stay} in float: INT8 alone loses {before} {where}, {limit} is allowed, and with them "
                f"it loses {after} ({len(self.trials)} trials). The most sensitive first: {layers}."
            )
        return (
            f"INT8 alone loses {before} {where}, {limit} is allowed, and none of {len(self.trials)} trials keeps that; "
            f"the best loses {after}, with these layers in float: {layers}."
        )

    def _amount(self, score: Score) -> str:
        drop = score.drop(self.drop_type)
        return points(drop) if self.drop_type == "absolute" else f"{drop:.1%}"


def fallback(
    most: int,
    score_of: Callable[[int], Score],
    *,
    max_drop: float,
    drop_type: DropType = "absolute",
    max_trials: int,
) -> Fallback:
    """The fewest of the worst layers whose reversion keeps the drop within the limit, as far as the trials go.

    The count doubles until the limit holds, then the gap to the last count that did not is halved. That takes the drop
    for monotone in the count, which it nearly is; the result was always itself tried.

    Args:
        most: Layers that may be reverted.
        score_of: The score with so many of the most sensitive layers in float; each call is a trial.
        max_drop: Largest loss; see `Score.drop`.
        drop_type: What it counts.
        max_trials: At least one; the graph with all layers in INT8 is the first.
    """
    trials: dict[int, Score] = {}

    def holds(count: int) -> bool:
        trials[count] = score_of(count)
        return _keeps(trials[count], max_drop, drop_type)

    failed, count = 0, 0
    held = holds(0)
    while not held and count < most and len(trials) < max_trials:
        failed, count = count, min(max(1, 2 * count), most)
        held = holds(count)
    while held and count - failed > 1 and len(trials) < max_trials:
        middle = (failed + count) // 2
        if holds(middle):
            count = middle
        else:
            failed = middle
    if not held:
        count = min(trials, key=lambda tried: (trials[tried].drop(drop_type), tried))
    return Fallback(count=count, held=held, trials=trials, limit=max_drop, drop_type=drop_type)


def _keeps(score: Score, max_drop: float, drop_type: DropType) -> bool:
    """A drop of exactly the limit keeps it, whatever the rounding."""
    return score.drop(drop_type) <= max_drop + 1e-9
