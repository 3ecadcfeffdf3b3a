"""NSGA-II: evolves a whole front of trade-offs between score, latency and size (Deb et al. 2002)."""

from __future__ import annotations

import numpy as np

from edgekd.search.front import survivors
from edgekd.search.searcher import Problem, Settings
from edgekd.search.searchers.proposing import Proposing
from edgekd.search.space import Arch


class NSGA2(Proposing):
    """Parents win binary tournaments by front, then by distance to their neighbours; children mix and change them.

    Deviations from the paper: the survivors of each batch are taken from everything scored so far, for scores are ranks
    and move when others join; choices on the axes are crossed uniformly, and one of them is changed; a proposal over
    the limit is walked towards the cheapest architecture until it fits; no network is proposed twice.
    """

    summary = "evolves the front of score, latency and size; for a choice of trade-offs"
    source = "Deb et al. 2002, doi 10.1109/4235.996017"

    def __init__(self, problem: Problem, settings: Settings) -> None:
        super().__init__(problem, settings)
        self._survivors: list[Arch] = []
        """Best first."""

    def _prepare(self) -> None:
        scored = self.scored
        if not scored:
            return
        costs = np.array([self.problem.costs(outcome.arch) for outcome in scored], dtype=np.float64)
        objectives = np.column_stack([-self._scores(), costs])
        self._survivors = [scored[place].arch for place in survivors(objectives, self.settings.population)]

    def _proposal(self, place: int) -> Arch:
        if place < self.settings.population or not self._survivors:
            return self.problem.space.sample(self._rng)
        mother, father = self._parent(), self._parent()
        child = tuple(self._rng.choice(pair) for pair in zip(mother, father, strict=True))
        return self.problem.space.mutate(child, self._rng)

    def _parent(self) -> Arch:
        """The better of two survivors drawn at random."""
        return self._survivors[min(self._rng.randrange(len(self._survivors)) for _ in range(2))]
