"""What searchers that propose at random share: a proposal is made to fit, and one that is known is made anew."""

from __future__ import annotations

from abc import abstractmethod

from edgekd.search.searcher import Searcher
from edgekd.search.space import Arch

_ATTEMPTS = 100
"""Proposals in a row that may be known already before what fits is gone through from the cheapest on."""


class Proposing(Searcher):
    """Repeats a subclass's proposals until one is unknown, and finds what is left when proposals only repeat."""

    @abstractmethod
    def _proposal(self, place: int) -> Arch:
        """Any architecture; it need neither fit nor be unknown."""

    def _next(self, place: int) -> Arch | None:
        for _ in range(_ATTEMPTS):
            proposal = self._fitting(self._proposal(place))
            if self._claim(proposal):
                return proposal
        return next((arch for arch, fits in self.problem.explored() if fits and self._claim(arch)), None)

    def _fitting(self, arch: Arch) -> Arch:
        """`arch`, or the first that fits on a random walk from it to the cheapest, found by bisection."""
        if self.problem.fits(arch):
            return arch
        self.rejected += 1
        walk = [arch]
        while (cheaper := self.problem.space.cheaper(walk[-1], self._rng)) is not None:
            walk.append(cheaper)
        over, fitting = 0, len(walk) - 1
        while fitting - over > 1:
            middle = (over + fitting) // 2
            if self.problem.fits(walk[middle]):
                fitting = middle
            else:
                over = middle
        return walk[fitting]
