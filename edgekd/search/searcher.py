"""Proposes architectures in batches and learns from their scores: the contract of searchers.

A searcher neither builds nor scores anything. What it proposes follows from its arguments, the seed and what it was
told, never from how many workers score, and its state is plain JSON: a search killed half way goes on to the same end.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from edgekd.core.digest import Digest
from edgekd.core.registry import Registry
from edgekd.core.schema import Schema
from edgekd.search.ranking import Ranking
from edgekd.search.space import Arch, SearchSpace

AUTO = "auto"
"""Takes the exhaustive searcher where the students that fit are few, else evolution."""
_COUNTED_PER_EVALUATION = 5
"""Spaces up to so many times the evaluations are counted before a searcher is chosen."""


class Outcome(Schema):
    """What came of an architecture that was asked for.

    Attributes:
        values: By proxy, the mean over the seeds; higher is better. Empty when it was skipped.
        spreads: By proxy, the standard deviation over the seeds.
        skipped: Why nothing can be said about it; None for a scored one.
    """

    arch: Arch
    values: tuple[float, ...] = ()
    spreads: tuple[float, ...] = ()
    skipped: str | None = None


class SearcherState(Schema):
    """Everything that decides what a searcher does next.

    Attributes:
        generator: State of Python's Mersenne Twister: version, words, pending Gaussian.
        told: Oldest first.
        rejected: Proposals that were over the limit.
        position: How many architectures an exhaustive search has looked at.
    """

    generator: tuple[int, tuple[int, ...], float | None]
    told: tuple[Outcome, ...] = ()
    rejected: int = Field(default=0, ge=0)
    position: int = Field(default=0, ge=0)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is searched, and what for.

    Attributes:
        space: Its cheapest architecture fits.
        ranking: Turns values into scores, over everything that was told so far.
        fits: Whether an architecture keeps the limit; asked before anything is scored.
        costs: What is to be small beside a high score: predicted latency or multiply-accumulates, and parameters.
    """

    space: SearchSpace
    ranking: Ranking
    fits: Callable[[Arch], bool]
    costs: Callable[[Arch], tuple[float, ...]]

    def explored(self) -> Iterator[tuple[Arch, bool]]:
        """(architecture, whether it fits), step by step up from the cheapest one, as far as there are any that fit.

        Only what lies one step above a fitting one is looked at: a step up is not expected to make a network cheaper.
        So the time goes with the number that fit, however large the space is.
        """
        waiting, seen = deque([self.space.cheapest]), {self.space.cheapest}
        while waiting:
            arch = waiting.popleft()
            fits = self.fits(arch)
            yield arch, fits
            for above in self.space.dearer(arch) if fits else ():
                if above not in seen:
                    seen.add(above)
                    waiting.append(above)

    def same_network(self, arch: Arch) -> Digest:
        """Equal for architectures that build the same network: widths that round to one multiple do."""
        return self.space.recipe(arch).digest


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of all searchers; each reads what it knows.

    Attributes:
        seed: Of the proposals.
        population: How many architectures compete; so many are drawn at random first.
        tournament: How many of them are compared to find a parent.
    """

    seed: int = 0
    population: int = 32
    tournament: int = 8


class Searcher(ABC):
    """Alternates `ask` and `tell`; every architecture that was asked for is told before the next `ask`.

    Only architectures that fit are asked for, and no network twice. Skipped ones are remembered and never ranked.

    Attributes:
        summary: One line.
        source: Authors, year, arXiv id or DOI.
        rejected: Proposals so far that were over the limit.
    """

    summary: ClassVar[str]
    source: ClassVar[str] = ""

    def __init__(self, problem: Problem, settings: Settings) -> None:
        self.problem = problem
        self.settings = settings
        self.rejected = 0
        self._rng = random.Random(settings.seed)
        self._told: list[Outcome] = []
        self._known: set[Digest] = set()

    def ask(self, count: int) -> tuple[Arch, ...]:
        """Up to `count` architectures not asked for before: fewer when no more are left, none when nothing is."""
        asked: list[Arch] = []
        self._prepare()
        while len(asked) < count and (arch := self._next(len(self._told) + len(asked))) is not None:
            asked.append(arch)
        return tuple(asked)

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        """What came of the last batch, in the order in which it was asked for."""
        self._told += outcomes

    @property
    def told(self) -> tuple[Outcome, ...]:
        """Everything, oldest first."""
        return tuple(self._told)

    @property
    def scored(self) -> tuple[Outcome, ...]:
        """What was not skipped, oldest first."""
        return tuple(outcome for outcome in self._told if outcome.skipped is None)

    def state(self) -> SearcherState:
        """A snapshot, between a `tell` and the next `ask`."""
        version, words, gauss = self._rng.getstate()
        return SearcherState(generator=(version, words, gauss), told=self.told, rejected=self.rejected)

    def restore(self, state: SearcherState) -> None:
        """Goes on from a snapshot of a searcher with the same arguments."""
        self._rng.setstate(state.generator)
        self._told = list(state.told)
        self._known = {self.problem.same_network(outcome.arch) for outcome in state.told}
        self.rejected = state.rejected

    @abstractmethod
    def _next(self, place: int) -> Arch | None:
        """An architecture that fits and was not asked for yet, marked as known; None when there is none.

        Args:
            place: How many were asked for before it.
        """

    def _prepare(self) -> None:
        """Called once before each batch: whatever all its proposals share is computed here."""
        return None

    def _claim(self, arch: Arch) -> bool:
        """Whether the network was not asked for before; from now on it counts as known."""
        network = self.problem.same_network(arch)
        known = network in self._known
        self._known.add(network)
        return not known

    def _scores(self) -> npt.NDArray[np.float64]:
        """Of `scored`, in its order."""
        scored = self.scored
        return self.problem.ranking.scores([outcome.values for outcome in scored]) if scored else np.empty(0)


SEARCHERS: Registry[type[Searcher]] = Registry(
    "searcher",
    {
        "evolution": "edgekd.search.searchers.evolution:AgingEvolution",
        "nsga2": "edgekd.search.searchers.nsga2:NSGA2",
        "random": "edgekd.search.searchers.sampling:RandomSampling",
        "exhaustive": "edgekd.search.searchers.exhaustive:Exhaustive",
    },
)


def chosen_searcher(name: str, problem: Problem, *, evaluations: int) -> tuple[str, str]:
    """(registry name, one sentence on the choice) of the searcher to take.

    Args:
        name: A registered one, or `auto`.
        evaluations: How many students may be scored.

    Raises:
        UserError: Unknown; the message suggests the near one.
    """
    if name != AUTO:
        SEARCHERS.get(name)
        return name, f"Searcher: {name}, as asked for."
    size = problem.space.size
    if size <= _COUNTED_PER_EVALUATION * evaluations:
        fitting = _count_fitting(problem, at_most=evaluations)
        if fitting <= evaluations:
            return "exhaustive", f"Searcher: exhaustive, for only {fitting} of {size:,} students fit the limit."
    return "evolution", (
        f"Searcher: evolution, for more than {evaluations} of {size:,} students may fit the limit. "
        "For a wider front of trade-offs: --searcher nsga2."
    )


def _count_fitting(problem: Problem, *, at_most: int) -> int:
    """Different networks that fit; counting ends one beyond `at_most`."""
    found: set[Digest] = set()
    for arch, fits in problem.explored():
        if fits:
            found.add(problem.same_network(arch))
        if len(found) > at_most:
            break
    return len(found)
