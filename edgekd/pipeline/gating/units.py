"""Units of measurement for the gate on this machine: each engine in a process of its own.

How engines are opened anew and measured is `edgekd.profiling.agent.units`, the same lines as on a board. An engine that
crashes or hangs here takes its own process along and ends the gate with a reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Protocol

from pydantic import JsonValue

from edgekd.core.blobs import Blobs
from edgekd.core.report import LatencyReport
from edgekd.errors import EdgekdError
from edgekd.gate.questions import Unit
from edgekd.profiling.agent.loop import Samples, Timer
from edgekd.profiling.agent.units import UnitFailed, Units
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
        self._opener = opener or IsolatedOpener()
        self._sessions: dict[str, Mapping[str, JsonValue]] = {}
        self._units = Units(tuple(engines), self._open, plan.loop, seed=seed, clock_s=clock_s)
        self.reports: dict[str, LatencyReport] = {}
        """Of the latest unit, by engine."""

    @property
    def openings(self) -> int:
        """How often the engines were opened."""
        return self._units.openings

    def __call__(self) -> Unit:
        """Measures one unit.

        Raises:
            EdgekdError: An engine does not open or run.
        """
        try:
            found = self._units()
        except UnitFailed as err:
            raise err.__cause__ if isinstance(err.__cause__, EdgekdError) else EdgekdError(str(err)) from None
        for name, samples in found.items():
            engine = self._engines[name]
            self.reports[name] = latency_report(
                samples,
                runtime=engine.runtime,
                precision=engine.precision,
                threads=engine.threads,
                batch=engine.batch,
                session=self._sessions[name],
                asked=self._plan.precision,
            )
        return unit_from_samples(found)

    def close(self) -> None:
        """Closes the engines that are open."""
        self._opener.close()
        self._units.forget()

    def _open(self, name: str) -> Timer:
        timer, self._sessions[name] = self._opener.open(name, self._engines[name], self._blobs)
        return timer


def unit_from_samples(samples: Mapping[str, Samples]) -> Unit:
    """The bursts of each engine in milliseconds, as questions take them."""
    return {name: [[ns / 1e6 for ns in burst] for burst in found.rounds_ns] for name, found in samples.items()}
