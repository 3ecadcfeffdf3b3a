"""Aging evolution: the oldest die, whatever they are worth (Real et al. 2019, arXiv 1802.01548)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgekd.search.searcher import Outcome, Problem, Settings
from edgekd.search.searchers.proposing import Proposing
from edgekd.search.space import Arch


class AgingEvolution(Proposing):
    """The youngest `population` students compete; the best of a random few has a mutated child; the oldest dies.

    Deviations from the paper: a batch of children has the same living parents, as if so many workers had asked at
    once; a proposal over the limit is walked towards the cheapest architecture until it fits, before anything is
    scored; no network is proposed twice.
    """

    summary = "mutates the best of a random few; for the highest score within the limit"
    source = "Real et al. 2019, arXiv 1802.01548"

    def __init__(self, problem: Problem, settings: Settings) -> None:
        super().__init__(problem, settings)
        self._alive: tuple[Outcome, ...] = ()
        self._alive_scores: npt.NDArray[np.float64] = np.empty(0)

    def _prepare(self) -> None:
        self._alive = self.scored[-self.settings.population :]
        self._alive_scores = self._scores()[-self.settings.population :]

    def _proposal(self, place: int) -> Arch:
        if place < self.settings.population or not self._alive:
            return self.problem.space.sample(self._rng)
        rivals = self._rng.sample(range(len(self._alive)), min(self.settings.tournament, len(self._alive)))
        best = max(rivals, key=lambda rival: float(self._alive_scores[rival]))
        return self.problem.space.mutate(self._alive[best].arch, self._rng)
