"""Chooses one replacement per run of blocks, exactly: the least sum of scores within limits on sums of costs.

    minimise    sum_s score_s x_s
    subject to  sum over s that cover block b of x_s = 1   for each block b
                sum_s cost_s x_s <= limit                  for each kind of cost
                x_s + x_t <= 1                             for each pair that must not stand together
                x_s in {0, 1}

The mixed integer programme of Puzzle (Bercovich et al. 2024, arXiv 2411.19146) with runs of blocks in the place of
single ones, solved to optimality by HiGHS (Huangfu and Hall 2018). The columns of the covering rows are consecutive
ones, so that but for the limits the relaxation is integral: instances of a hundred blocks take well below a second.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from edgekd.errors import EdgekdError

_SLACK = 1e-9
"""Relative rounding that a sum of costs may have."""
_LARGEST = 1e3
"""Scores are scaled to it, for HiGHS stops at an absolute gap of 1e-6."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One way to fill a run of blocks.

    Attributes:
        first: Position of its first block.
        last: Position of its last block.
        score: To be small in sum.
        costs: One for each limit.
    """

    first: int
    last: int
    score: float
    costs: tuple[float, ...]


def best_sets(
    choices: Sequence[Choice],
    blocks: int,
    limits: Sequence[float],
    *,
    apart: Collection[tuple[int, int]] = (),
    count: int = 1,
    differ: int = 1,
) -> list[tuple[int, ...]]:
    """The best sets of choices that cover each block once within the limits, best first; empty where there is none.

    Args:
        choices: What to choose from.
        blocks: Number of blocks.
        limits: Largest sum of each cost; infinite for none.
        apart: Pairs of indices of choices that no set holds both of.
        count: How many sets.
        differ: A set leaves out at least so many choices of each better one.

    Raises:
        EdgekdError: The solver failed.
    """
    rows = _rows(choices, blocks, limits, apart)
    scores = np.array([choice.score for choice in choices])
    scores = scores * (_LARGEST / max(float(np.abs(scores).max()), 1e-300))
    found: list[tuple[int, ...]] = []
    while len(found) < count and (one := _solved(scores, rows)) is not None:
        # Within the solver's tolerance a set may be over a limit by a hair: it is passed over for the next best.
        kept = all(
            sum(choices[index].costs[kind] for index in one) <= limit + _SLACK * abs(limit)
            for kind, limit in enumerate(limits)
        )
        taken = np.zeros((1, len(choices)))
        taken[0, list(one)] = 1
        rows.append(LinearConstraint(taken, -np.inf, len(one) - (min(differ, len(one)) if kept else 1)))
        if kept:
            found.append(one)
    return found


def _rows(
    choices: Sequence[Choice], blocks: int, limits: Sequence[float], apart: Collection[tuple[int, int]]
) -> list[LinearConstraint]:
    """Cover, limits and pairs; costs are scaled to at most 1, since tolerances of the solver are absolute."""
    cover = np.zeros((blocks, len(choices)))
    for index, choice in enumerate(choices):
        cover[choice.first : choice.last + 1, index] = 1
    rows = [LinearConstraint(cover, 1, 1)]
    for kind, limit in enumerate(limits):
        if np.isfinite(limit):
            costs = np.array([choice.costs[kind] for choice in choices])
            scale = max(float(np.abs(costs).max()), 1e-300)
            rows.append(LinearConstraint(costs[None] / scale, -np.inf, (limit + _SLACK * abs(limit)) / scale))
    if apart:
        pairs = np.zeros((len(apart), len(choices)))
        for row, pair in enumerate(apart):
            pairs[row, list(pair)] = 1
        rows.append(LinearConstraint(pairs, -np.inf, 1))
    return rows


def _solved(scores: np.ndarray, rows: Sequence[LinearConstraint]) -> tuple[int, ...] | None:
    """Indices of the optimal set, None where no set keeps the rows."""
    result = milp(
        scores, constraints=rows, integrality=np.ones(len(scores)), bounds=Bounds(0, 1), options={"mip_rel_gap": 0}
    )
    if result.status == 2:
        return None
    if result.x is None:
        raise EdgekdError(f"HiGHS could not choose the blocks: {result.message}")
    return tuple(int(index) for index in np.flatnonzero(result.x > 0.5))
