"""Leaves the most sensitive layers in float, as few as it takes to keep what INT8 loses within a limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgekd.core.text import points
from edgekd.quant.trial import DropType, Score

LARGEST_SHARE = 0.5
"""Of the layers that may be reverted: beyond, little is left of what INT8 is for."""


@dataclass(frozen=True, kw_only=True)
class Fallback:
    """The assignment of precisions, and how it was found.

    Attributes:
        reverted: Layers in float, the most sensitive first.
        score: Of the graph with them.
        held: The limit is kept.
        trials: (layers reverted, score) in the order they were tried.
        decision: One sentence.
    """

    reverted: tuple[str, ...]
    score: Score
    held: bool
    trials: tuple[tuple[int, Score], ...]
    decision: str


def fallback(
    order: Sequence[str],
    score_of: Callable[[tuple[str, ...]], Score],
    *,
    max_drop: float,
    drop_type: DropType = "absolute",
    max_trials: int,
) -> Fallback:
    """The fewest of the worst layers whose reversion keeps the drop within the limit, as far as the trials go.

    The count doubles until the limit holds, then the gap to the last count that did not is halved. That takes the drop
    for monotone in the count, which it nearly is; the result was always itself tried.

    Args:
        order: Layers, the most sensitive first.
        score_of: The score with some layers in float; each call is a trial.
        max_drop: Largest loss; see `Score.drop`.
        drop_type: What it counts.
        max_trials: At least one; the graph with all layers in INT8 is the first.
    """
    trials: dict[int, Score] = {}
    most = int(len(order) * LARGEST_SHARE)

    def holds(count: int) -> bool:
        if count not in trials:
            trials[count] = score_of(tuple(order[:count]))
        return _keeps(trials[count], max_drop, drop_type)

    failed, count = -1, 0
    while not holds(count):
        failed = count
        count = min(max(1, 2 * count), most)
        if count == failed or len(trials) >= max_trials:
            break
    while count in trials and holds(count) and count - failed > 1 and len(trials) < max_trials:
        middle = (failed + count) // 2
        if holds(middle):
            count = middle
        else:
            failed = middle
    kept = [n for n, score in trials.items() if _keeps(score, max_drop, drop_type)]
    chosen = min(kept) if kept else min(trials, key=lambda n: (trials[n].drop(drop_type), n))
    return Fallback(
        reverted=tuple(order[:chosen]),
        score=trials[chosen],
        held=bool(kept),
        trials=tuple(trials.items()),
        decision=_sentence(order[:chosen], trials, chosen, bool(kept), max_drop, drop_type),
    )


def _keeps(score: Score, max_drop: float, drop_type: DropType) -> bool:
    """A drop of exactly the limit keeps it, whatever the rounding."""
    return score.drop(drop_type) <= max_drop + 1e-9


def _sentence(
    names: Sequence[str],
    trials: dict[int, Score],
    chosen: int,
    held: bool,
    max_drop: float,
    drop_type: DropType,
) -> str:
    first, found = trials[0], trials[chosen]
    what = "accuracy" if first.top1 is not None else "agreement with FP32"
    limit = points(max_drop) if drop_type == "absolute" else f"{max_drop:.1%} of it"
    before, after = (_amount(score.drop(drop_type), drop_type) for score in (first, found))
    if not chosen and held:
        return f"No layer is reverted: INT8 loses {after} of {what} on {found.n} samples, and {limit} is allowed."
    layers = ", ".join(names) or "none"
    if held:
        return (
            f"{chosen} layers stay in float, because INT8 alone loses {before} of {what} on {found.n} samples and "
            f"{limit} is allowed; with them it loses {after} ({len(trials)} trials). Most sensitive first: {layers}."
        )
    return (
        f"INT8 loses {before} of {what} on {found.n} samples, {limit} is allowed, and none of {len(trials)} trials "
        f"keeps that; the best loses {after} with these layers in float: {layers}."
    )


def _amount(drop: float, drop_type: DropType) -> str:
    return points(drop) if drop_type == "absolute" else f"{drop:.1%}"
