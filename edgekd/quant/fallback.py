"""Leaves the most sensitive layers in float, as few as it takes to keep what INT8 loses within a limit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edgekd.quant.limit import Limit
from edgekd.quant.trial import Score

LARGEST_SHARE = 0.5
"""Of the layers that may be reverted: beyond, little is left of what INT8 is for."""


@dataclass(frozen=True, kw_only=True)
class Fallback:
    """How many layers are reverted, and how that was found.

    Attributes:
        count: Of the most sensitive layers.
        held: The limit is kept.
        trials: Score by count, in the order they were tried.
        limit: What may be lost.
    """

    count: int
    held: bool
    trials: Mapping[int, Score]
    limit: Limit

    def decision(self, names: Sequence[str]) -> str:
        """One sentence.

        Args:
            names: The layers that are reverted, the most sensitive first.
        """
        alone, found, limit = self.trials[0], self.trials[self.count], self.limit.amount
        before, after = (self._amount(score) for score in (alone, found))
        where = self.limit.of_what(found)
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
        return self.limit.in_words(self.limit.loss_of(score)).removesuffix(" of it")


def fallback(most: int, score_of: Callable[[int], Score], *, limit: Limit, max_trials: int) -> Fallback:
    """The fewest of the worst layers whose reversion keeps the drop within the limit, as far as the trials go.

    The count doubles until the limit holds, then the gap to the last count that did not is halved. That takes the drop
    for monotone in the count, which it nearly is; the result was always itself tried.

    Args:
        most: Layers that may be reverted.
        score_of: The score with so many of the most sensitive layers in float; each call is a trial.
        limit: What may be lost.
        max_trials: At least one; the graph with all layers in INT8 is the first.
    """
    trials: dict[int, Score] = {}

    def holds(count: int) -> bool:
        trials[count] = score_of(count)
        return limit.keeps(trials[count])

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
        count = min(trials, key=lambda tried: (limit.loss_of(trials[tried]), tried))
    return Fallback(count=count, held=held, trials=trials, limit=limit)
