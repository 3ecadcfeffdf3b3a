"""How far the random seeds could change the order that a search found.

A proxy's value is a mean over seeds and knows its own error. Redrawing all values within their errors and ranking anew
shows how far scores would move with other seeds:

    v'_ip = v_ip + s_ip / sqrt(S) * z,  z ~ N(0, 1),  for student i, proxy p, S seeds; a score's spread is its standard
    deviation over 100 such tables (parametric bootstrap, Efron and Tibshirani 1993)

Errors are drawn for each student by itself. All students share a seed's teacher and batch, which moves them together
and their order less; so the spread of a lead is rather too large than too small. It holds chance alone: a proxy that is
wrong about a student is wrong with every seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekd.search.ranking import Ranking
from edgekd.search.searcher import Outcome

_TABLES = 100


@dataclass(frozen=True, kw_only=True, eq=False)
class Standing:
    """The scores of all scored students, and where other seeds might have put them.

    Attributes:
        scores: (students,), higher is better.
        redrawn: (tables, students); no tables where no value depends on a seed.
    """

    scores: npt.NDArray[np.float64]
    redrawn: npt.NDArray[np.float64]

    def spread(self, place: int) -> float:
        """Standard deviation of one student's score over the redrawn tables; 0 where nothing is random."""
        return _deviation(self.redrawn[:, place])

    def lead(self, first: int, second: int) -> tuple[float, float]:
        """How far one student is ahead of another, and the standard deviation of that."""
        apart = self.redrawn[:, first] - self.redrawn[:, second]
        return float(self.scores[first] - self.scores[second]), _deviation(apart)

    def level_with(self, first: int) -> list[int]:
        """Places of the other students that the seeds leave in a toss-up with one: ahead or behind by their spread."""
        leads = ((place, *self.lead(first, place)) for place in range(len(self.scores)) if place != first)
        return [place for place, lead, spread in leads if abs(lead) <= spread]


def _deviation(redrawn: npt.NDArray[np.float64]) -> float:
    """Standard deviation; exactly 0 for equal values, which their rounded mean would not give."""
    return float((redrawn - redrawn[0]).std()) if len(redrawn) else 0.0


def standing(ranking: Ranking, scored: Sequence[Outcome], *, seeds: int) -> Standing:
    """The standing of scored students; at least one.

    Args:
        seeds: Over which values and spreads were taken.
    """
    values = np.array([outcome.values for outcome in scored], dtype=np.float64)
    errors = np.array([outcome.spreads for outcome in scored], dtype=np.float64) / math.sqrt(seeds)
    tables = _TABLES if errors.any() else 0
    rng = np.random.default_rng(0)
    redrawn = [ranking.scores((values + errors * rng.standard_normal(values.shape)).tolist()) for _ in range(tables)]
    return Standing(
        scores=np.asarray(ranking.scores(values.tolist()), dtype=np.float64),
        redrawn=np.array(redrawn, dtype=np.float64).reshape(tables, len(values)),
    )
