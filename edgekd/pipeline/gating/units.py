"""Units of measurement for the gate: engines opened anew, a few rounds of short bursts, closed again.

Where the weights of an engine come to lie in memory changes its speed by a part of a percent, and stays as long as it
is open. Two copies of one engine then differ, steadily, and more rounds only make a test surer of a difference that
does not exist. So the engines are opened anew in every unit; an engine that takes long to open stays open until it was
measured for as long as opening took. Each engine lives in a process of its own, so that one that crashes or hangs ends
the gate with a reason.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Protocol

from pydantic import JsonValue

from edgekd.core.blobs import Blobs
from edgekd.core.report import LatencyReport
from edgekd.errors import EdgekdError
from edgekd.gate.questions import Unit
from edgekd.profiling.agent.loop import Timer, sample
from edgekd.profiling.isolated import Engine
from edgekd.profiling.measure import MeasurePlan, latency_report
from edgekd.profiling.process import WorkerProcess, WorkerTimer

PLAN = MeasurePlan(warmup_s=0.02, burst_s=0.01, min_rounds=6, max_rounds=10, duration_s=0.12, precision=1e-9)
"""A quarter of a second for two fast engines, six rounds for slow ones."""

Opened = tuple[Timer, Mapping[str, JsonValue]]
"""What times the calls, and what the session says of itself."""


class Opener(Protocol):
    """Opens engines by name; opening a name again closes what was open under it."""

    def open(self, name: str, engine: Engine, blobs: Blobs) -> Opened:
        """The engine, ready to be called; all engines are fed the same numbers.

        Raises:
            EdgekdError: It does not open.
        """

    def close(self) -> None:
        """Closes all of them."""


class IsolatedOpener:
    """An `Opener` with one worker process for each name, which stays from one opening to the next."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._workers: dict[str, WorkerProcess] = {}

    def open(self, name: str, engine: Engine, blobs: Blobs) -> Opened:
        if name not in self._workers:
            self._workers[name] = self._stack.enter_context(WorkerProcess(name, engine.runtime))
        worker = self._workers[name]
        session: dict[str, JsonValue] = worker.ask("open", engine.request(blobs, seed=0))["session"]
        return WorkerTimer(worker), session

    def close(self) -> None:
        self._stack.close()
        self._workers = {}


class EngineUnits:
    """Measures a unit at each call; close it at the end.

    Args:
        engines: By the names that units have.
        blobs: Finds their files.
        plan: Of one unit.
        seed: Of the order of opening and of the rounds.
        opener: Opens them.
        clock_s: Decides when a unit ends, and when to open anew.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        blobs: Blobs,
        *,
        plan: MeasurePlan = PLAN,
        seed: int = 0,
        opener: Opener | None = None,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engines, self._blobs, self._plan = engines, blobs, plan
        self._rng = random.Random(seed)
        self._opener = opener or IsolatedOpener()
        self._clock_s = clock_s
        self._opened: dict[str, Opened] = {}
        self._opening_s = self._measuring_s = 0.0
        self.openings = 0
        self.reports: dict[str, LatencyReport] = {}
        """Of the latest unit, by engine."""

    def __call__(self) -> Unit:
        """Measures one unit.

        Raises:
            EdgekdError: An engine does not open or run.
        """
        if not self._opened or self._measuring_s >= self._opening_s:
            self._open()
        start = self._clock_s()
        timers = {name: timer for name, (timer, _) in self._opened.items()}
        found = sample(
            timers, self._plan.loop, seed=self._rng.getrandbits(32), clock_ns=lambda: round(self._clock_s() * 1e9)
        )
        self._measuring_s += self._clock_s() - start
        for name, failure in found.failures.items():
            cause = failure.__cause__
            raise cause if isinstance(cause, EdgekdError) else EdgekdError(f"{name}: {failure}")
        for name, samples in found.samples.items():
            engine = self._engines[name]
            self.reports[name] = latency_report(
                samples,
                runtime=engine.runtime,
                precision=engine.precision,
                threads=engine.threads,
                batch=engine.batch,
                session=self._opened[name][1],
                asked=self._plan.precision,
            )
        return {
            name: [[ns / 1e6 for ns in burst] for burst in samples.rounds_ns] for name, samples in found.samples.items()
        }

    def close(self) -> None:
        """Closes the engines that are open."""
        self._opener.close()
        self._opened = {}

    def _open(self) -> None:
        start = self._clock_s()
        names = list(self._engines)
        self._rng.shuffle(names)
        self._opened = {name: self._opener.open(name, self._engines[name], self._blobs) for name in names}
        self._opening_s, self._measuring_s = self._clock_s() - start, 0.0
        self.openings += 1
