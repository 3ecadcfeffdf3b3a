"""Testing by betting: evidence against a hypothesis that may be looked at after every observation.

A gambler who starts with 1 bets, before each observation, on a game that is fair or worse for him where the hypothesis
holds. His wealth is then a non-negative supermartingale, and by Ville's inequality (1939) the chance that it ever
reaches 1/alpha is at most alpha: rejecting at that moment is valid however often one has looked. Nobody knows the best
stake beforehand, so the capital is spread over a grid of them (method of mixtures: Robbins, 1970; Howard, Ramdas,
McAuliffe and Sekhon, Annals of Statistics 49, 2021; Waudby-Smith and Ramdas, JRSS B 86, 2024).

Only the arithmetic is here; what is bet on is `edgekd.gate.sequential`'s affair.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

STAKES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99)
"""Shares of the capital that are put at risk: small ones win slowly where the odds are nearly even, large ones fast."""


class Wealth:
    """Equal capitals on every stake, in logarithms so that long games neither overflow nor vanish."""

    def __init__(self) -> None:
        self._logs = [0.0] * len(STAKES)

    def add(self, gain: float) -> None:
        """Plays one game.

        Args:
            gain: What a stake of everything would have won as a share of itself: at least -1, and of expectation at
                most 0 under the hypothesis, given what came before.
        """
        for index, stake in enumerate(STAKES):
            self._logs[index] += math.log1p(stake * gain)

    @property
    def p_value(self) -> float:
        """Anytime-valid: the chance of ever being as rich as now, were the hypothesis true, is at most this.

        It rises again when the luck turns, though the best capital so far would do as well: a disturbance at the
        beginning is then not decisive for ever.
        """
        top = max(self._logs)
        log = top + math.log(math.fsum(math.exp(value - top) for value in self._logs) / len(STAKES))
        return math.exp(-max(log, 0.0))


def p_value_of(gains: Iterable[float]) -> float:
    """The p-value after a whole game."""
    wealth = Wealth()
    for gain in gains:
        wealth.add(gain)
    return wealth.p_value
