"""Units of measurement for a gate: engines opened anew, a few rounds of short bursts, again and again.

Where the weights of an engine come to lie in memory changes its speed by a part of a percent, and stays as long as it
is open. Two copies of one engine then differ, steadily, and more rounds only make a test surer of a difference that
does not exist. So the engines are opened anew in every unit; an engine that takes long to open stays open until it was
measured for as long as opening took. The same lines run here and on a board. Standard library of Python 3.10 only.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

from edgekd.profiling.agent.loop import Plan, Samples, Timer, TurnFailed, sample


class UnitFailed(TurnFailed):
    """A unit ended because one engine could not go on.

    Args:
        name: Of the engine.
        cause: What it said.
    """

    def __init__(self, name: str, cause: TurnFailed) -> None:
        super().__init__(f"{name}: {cause}")
        self.name = name
        self.cause = cause


class Units:
    """Measures a unit at each call.

    Args:
        names: Of the engines.
        open_one: Opens an engine by its name and closes what was open under it. What it raises passes through.
        plan: Of one unit.
        seed: Of the order of opening and of the rounds.
        clock_s: Decides when a unit ends, and when to open anew.

    Attributes:
        openings: How often all engines were opened.
    """

    def __init__(
        self,
        names: Sequence[str],
        open_one: Callable[[str], Timer],
        plan: Plan,
        *,
        seed: int = 0,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._names, self._open_one, self._plan, self._clock_s = list(names), open_one, plan, clock_s
        self._rng = random.Random(seed)
        self._timers: dict[str, Timer] = {}
        self._opening_s = self._measuring_s = 0.0
        self.openings = 0

    def __call__(self) -> dict[str, Samples]:
        """The timings of each engine in one unit.

        Raises:
            UnitFailed: An engine cannot go on.
        """
        if not self._timers or self._measuring_s >= self._opening_s:
            self._open()
        start = self._clock_s()
        found = sample(
            self._timers, self._plan, seed=self._rng.getrandbits(32), clock_ns=lambda: round(self._clock_s() * 1e9)
        )
        self._measuring_s += self._clock_s() - start
        for name, failure in found.failures.items():
            raise UnitFailed(name, failure) from failure.__cause__
        return found.samples

    def forget(self) -> None:
        """Lets go of the engines, so that the next unit opens them."""
        self._timers = {}

    def _open(self) -> None:
        start, names = self._clock_s(), list(self._names)
        self._rng.shuffle(names)
        self._timers = {name: self._open_one(name) for name in names}
        self._opening_s, self._measuring_s = self._clock_s() - start, 0.0
        self.openings += 1
