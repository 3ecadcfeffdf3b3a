"""Why a student was picked, in one sentence that says what its lead over the next one is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edgekd.core.text import significant
from edgekd.search.certainty import Standing

Chance = Literal["none", "unknown", "known"]
"""Whether scores depend on random weights, and whether several seeds show by how much."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """All scored students, best first.

    Attributes:
        places: Positions in the standing.
        texts: What each student is, by position.
        seeds: Over which scores were taken.
        kept: Whether they keep the limit that was asked for.
    """

    standing: Standing
    places: Sequence[int]
    texts: Sequence[str]
    chance: Chance
    seeds: int
    kept: bool

    def reason(self, rank: int) -> str:
        """Why the student of this rank goes on; 0 is the best."""
        if not self.kept:
            return "It is the cheapest student: none keeps the limit."
        if len(self.places) == 1:
            return "It is the only student within the limit that could be scored."
        if rank > 0:
            return self._later(rank)
        own, following = self.places[0], self.places[1]
        lead, _ = self.standing.lead(own, following)
        ahead = "level with" if lead == 0 else f"{significant(lead)} ahead of"
        return (
            f"It has the highest score of {len(self.places)} students within the limit, {ahead} the next one "
            f"({self.texts[following]}); {self._worth(own, following)}."
        )

    def _later(self, rank: int) -> str:
        own, first = self.places[rank], self.places[0]
        lead, _ = self.standing.lead(first, own)
        head = f"It is number {rank + 1} of {len(self.places)} students within the limit"
        behind = "level with the first" if lead == 0 else f"{significant(lead)} behind the first"
        return f"{head}, {behind}; {self._worth(own, first)}."

    def _worth(self, own: int, other: int) -> str:
        """What the difference of two scores says."""
        lead, spread = self.standing.lead(own, other)
        if self.chance == "none":
            return "fewer multiply-accumulates decide" if lead == 0 else "no random draw takes part in this ranking"
        if self.chance == "unknown":
            return "with a single seed nobody knows how much of that is chance"
        if spread == 0 and lead != 0:
            return f"the differences between these {self.seeds} seeds are too small to change that"
        if abs(lead) > spread:
            return f"other seeds than these {self.seeds} would move that by about {significant(spread)}, which is less"
        level = len(self.standing.level_with(own))
        others = "this one" if level == 1 else f"{level} students"
        return (
            f"other seeds than these {self.seeds} would move that by about {significant(spread)}, "
            f"so it is a toss-up with {others}"
        )
