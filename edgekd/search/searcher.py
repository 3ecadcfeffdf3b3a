"""Proposes architectures and learns from their scores: aging evolution (Real et al. 2019, arXiv 1802.01548).

A searcher neither builds nor scores anything. Its state is plain JSON, so that a search killed half way goes on to the
same end.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Protocol

from pydantic import Field

from edgekd.core.schema import Schema
from edgekd.search.ranking import rank_sums
from edgekd.search.space import Arch, SearchSpace

_ATTEMPTS = 100
"""Proposals in a row that may be known already before the space counts as exhausted."""


class Searcher(Protocol):
    """Alternates `ask` and `tell`."""

    def ask(self) -> Arch | None:
        """An architecture not asked for before, or None when none is left to propose."""

    def tell(self, arch: Arch, values: tuple[float, ...]) -> None:
        """The proxies' values of an architecture that was asked for; higher is better."""


class EvolutionState(Schema):
    """Everything that decides what an evolution does next.

    Attributes:
        generator: State of Python's Mersenne Twister: version, words, pending Gaussian.
        told: Every scored architecture with its values, oldest first.
        rejected: Proposals that were over the budget.
    """

    generator: tuple[int, tuple[int, ...], float | None]
    told: tuple[tuple[Arch, tuple[float, ...]], ...] = ()
    rejected: int = Field(default=0, ge=0)


class AgingEvolution:
    """The youngest `population` architectures compete; the best of a random few has a mutated child; the oldest dies.

    Deviations from the paper: candidates are compared by the sum of their ranks over several proxies, within the
    tournament; a proposal over the budget is walked towards the cheapest architecture until it fits, before anything
    is scored; nothing is proposed twice.

    Args:
        space: What to search; its cheapest architecture fits.
        population: Size; so many architectures are sampled at random first.
        tournament: How many compete to be a parent.
        fits: Whether an architecture keeps the budget.
        seed: Of the proposals.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        population: int,
        tournament: int,
        fits: Callable[[Arch], bool],
        seed: int,
    ) -> None:
        self.space = space
        self.population = population
        self.tournament = tournament
        self.fits = fits
        self.rejected = 0
        self._rng = random.Random(seed)
        self._told: dict[Arch, tuple[float, ...]] = {}

    def ask(self) -> Arch | None:
        for _ in range(_ATTEMPTS):
            proposal = self._fitting(self._proposal())
            if proposal not in self._told:
                return proposal
        return None

    def tell(self, arch: Arch, values: tuple[float, ...]) -> None:
        self._told[arch] = values

    @property
    def told(self) -> dict[Arch, tuple[float, ...]]:
        """Scored architectures, oldest first."""
        return dict(self._told)

    def state(self) -> EvolutionState:
        """A snapshot, between a `tell` and the next `ask`."""
        version, words, gauss = self._rng.getstate()
        return EvolutionState(generator=(version, words, gauss), told=tuple(self._told.items()), rejected=self.rejected)

    def restore(self, state: EvolutionState) -> None:
        """Goes on from a snapshot of an evolution with the same arguments."""
        self._rng.setstate(state.generator)
        self._told = dict(state.told)
        self.rejected = state.rejected

    def _proposal(self) -> Arch:
        if len(self._told) < self.population:
            return self.space.sample(self._rng)
        alive = list(self._told.items())[-self.population :]
        rivals = self._rng.sample(alive, min(self.tournament, len(alive)))
        best = int(rank_sums([values for _, values in rivals]).argmax())
        return self.space.mutate(rivals[best][0], self._rng)

    def _fitting(self, arch: Arch) -> Arch:
        """`arch`, or the first that fits on a random walk from it to the cheapest, found by bisection."""
        if self.fits(arch):
            return arch
        self.rejected += 1
        walk = [arch]
        while (cheaper := self.space.cheaper(walk[-1], self._rng)) is not None:
            walk.append(cheaper)
        over, fitting = 0, len(walk) - 1
        while fitting - over > 1:
            middle = (over + fitting) // 2
            if self.fits(walk[middle]):
                fitting = middle
            else:
                over = middle
        return walk[fitting]
