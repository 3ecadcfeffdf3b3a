"""One order from the values of several proxies. Ranks add, values do not: proxies have units and heavy tails."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from edgekd.core.registry import Registry


class Ranking(Protocol):
    """Which proxies to ask, and how their answers become one order.

    Attributes:
        summary: One line.
        draws: Draws of the random weights that a search takes unless it is told: more tell less than they cost.
    """

    summary: ClassVar[str]
    draws: ClassVar[int]

    @property
    def proxies(self) -> tuple[str, ...]:
        """Names in `edgekd.search.proxy.PROXIES`: the columns of the table."""

    def scores(self, values: Sequence[Sequence[float]]) -> npt.NDArray[np.float64]:
        """One score for each candidate; higher is better. Scores are comparable within one table only.

        Args:
            values: (candidates, proxies), finite, higher is better.
        """


class RankSum:
    """The sum of each candidate's ranks over the proxies.

    Args:
        proxies: At least one name.
    """

    summary: ClassVar[str] = "the sum of the ranks of several proxies"
    draws: ClassVar[int] = 5

    def __init__(self, proxies: Sequence[str]) -> None:
        self.proxies = tuple(proxies)

    def scores(self, values: Sequence[Sequence[float]]) -> npt.NDArray[np.float64]:
        return rank_sums(values)


RANKINGS: Registry[type[Ranking]] = Registry("ranking", {"combined": "edgekd.search.combined:Combined"})
"""Combinations that are more than a sum of ranks."""


def ranking_from_name(name: str) -> Ranking:
    """A name in `RANKINGS`, or proxies joined by `+`, whose ranks are added with equal weight."""
    return RANKINGS.get(name)() if name in RANKINGS else RankSum(name.split("+"))


def ranks(values: Sequence[Sequence[float]]) -> npt.NDArray[np.float64]:
    """(candidates, proxies): the rank of each value in its column, in [0, 1], 1 for the best; ties share their mean."""
    table = np.asarray(values, dtype=np.float64)
    below = (table[:, None] > table[None, :]).sum(1)
    equal = (table[:, None] == table[None, :]).sum(1) - 1
    shared: npt.NDArray[np.float64] = (below + equal / 2) / max(1, len(table) - 1)
    return shared


def rank_sums(values: Sequence[Sequence[float]]) -> npt.NDArray[np.float64]:
    """The sum over proxies of each candidate's rank.

    Args:
        values: (candidates, proxies), higher is better.
    """
    sums: npt.NDArray[np.float64] = ranks(values).sum(1)
    return sums
