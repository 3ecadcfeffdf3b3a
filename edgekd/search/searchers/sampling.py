"""Random sampling: what every cleverer searcher has to beat (Li and Talwalkar 2019, arXiv 1902.07638)."""

from __future__ import annotations

from edgekd.search.searchers.proposing import Proposing
from edgekd.search.space import Arch

_DRAWS = 20
"""Draws over the limit in a row before one of them is made to fit."""


class RandomSampling(Proposing):
    """Draws students uniformly from those that fit.

    Where 20 draws in a row do not fit, the last one is walked towards the cheapest architecture until it does; under
    such a tight limit the draw is not uniform any more.
    """

    summary = "draws students at random; the baseline of the others"
    source = "Li and Talwalkar 2019, arXiv 1902.07638"

    def _proposal(self, place: int) -> Arch:
        for _ in range(_DRAWS - 1):
            arch = self.problem.space.sample(self._rng)
            if self.problem.fits(arch):
                return arch
            self.rejected += 1
        return self.problem.space.sample(self._rng)
