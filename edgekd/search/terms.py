"""What a search is run with: the space, who ranks, what it costs and what it may cost."""

from __future__ import annotations

from dataclasses import dataclass

from edgekd.search.config import SearchConfig
from edgekd.search.limit import Costs, Limit
from edgekd.search.ranking import Ranking
from edgekd.search.searcher import Problem
from edgekd.search.space import Arch, GridSpace


@dataclass(frozen=True, kw_only=True)
class Terms:
    """Everything that a search is run with but the searcher and the workers.

    Attributes:
        relative_error: Of the latency model, where it is known.
    """

    config: SearchConfig
    space: GridSpace
    ranking: Ranking
    costs: Costs
    limit: Limit
    relative_error: float | None

    @property
    def seeds(self) -> int:
        """Draws of the random weights."""
        return self.config.seeds or self.ranking.draws

    @property
    def problem(self) -> Problem:
        """What searchers see of it."""
        return Problem(space=self.space, ranking=self.ranking, fits=self._fits, costs=self._costs)

    def _fits(self, arch: Arch) -> bool:
        if not self.limit.kept:  # the cheapest alone is admitted: nothing needs to be counted
            return arch == self.space.cheapest
        return self.limit.admits(self.costs.of(arch))

    def _costs(self, arch: Arch) -> tuple[float, ...]:
        cost = self.costs.of(arch)
        return cost.compared, float(cost.params)
