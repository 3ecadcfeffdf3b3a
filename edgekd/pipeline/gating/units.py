"""Units of measurement for the gate: engines opened anew, a few rounds of short bursts, closed again.

Where the weights of an engine come to lie in memory changes its speed by a part of a percent, and stays as long as it
is open. Two copies of one engine then differ, steadily, and more rounds only make a test surer of a difference that
does not exist. So the engines are opened anew in every unit; an engine that takes long to open stays open until it was
measured for as long as opening took.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from edgekd.core.blobs import Blobs
from edgekd.core.bundle import ModelBundle
from edgekd.core.report import LatencyReport
from edgekd.errors import EdgekdError
from edgekd.gate.questions import Unit
from edgekd.profiling.measure import MeasurePlan, Profiler, Subject
from edgekd.runtimes.session import open_bundle

PLAN = MeasurePlan(warmup_s=0.02, burst_s=0.01, min_rounds=6, max_rounds=10, duration_s=0.12, precision=1e-9)
"""A quarter of a second for two fast engines, six rounds for slow ones."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A bundle and how to run it.

    Attributes:
        bundle: What `open_bundle` opens.
        runtime: Registry name.
    """

    bundle: ModelBundle
    runtime: str
    threads: int


class EngineUnits:
    """Measures a unit at each call; close it at the end.

    Args:
        engines: By the names that units have.
        blobs: Finds their files.
        plan: Of one unit.
        seed: Of the order of opening and of the rounds.
        clock_s: Decides when to open anew.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        blobs: Blobs,
        *,
        plan: MeasurePlan = PLAN,
        seed: int = 0,
        profiler: Profiler | None = None,
        clock_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._engines, self._blobs, self._plan = engines, blobs, plan
        self._rng = random.Random(seed)
        self._profiler = profiler or Profiler()
        self._clock_s = clock_s
        self._stack = ExitStack()
        self._subjects: dict[str, Subject] = {}
        self._opening_s = self._measuring_s = 0.0
        self.openings = 0
        self.reports: dict[str, LatencyReport] = {}
        """Of the latest unit, by engine."""

    def __call__(self) -> Unit:
        """Measures one unit.

        Raises:
            EdgekdError: An engine does not open or run.
        """
        if not self._subjects or self._measuring_s >= self._opening_s:
            self._open()
        start = self._clock_s()
        found = self._profiler.measure_interleaved(self._subjects, self._plan, seed=self._rng.getrandbits(32))
        self._measuring_s += self._clock_s() - start
        for report in found.values():
            if isinstance(report, EdgekdError):
                raise report
            _require_whole(report)
        self.reports = {name: report for name, report in found.items() if isinstance(report, LatencyReport)}
        return {name: bursts_of(report) for name, report in self.reports.items()}

    def close(self) -> None:
        """Closes the engines that are open."""
        self._stack.close()
        self._stack, self._subjects = ExitStack(), {}

    def _open(self) -> None:
        self.close()
        start = self._clock_s()
        names = list(self._engines)
        self._rng.shuffle(names)
        for name in names:
            engine = self._engines[name]
            session = self._stack.enter_context(
                open_bundle(engine.bundle, self._blobs, engine.runtime, threads=engine.threads, batch=1)
            )
            shape = (1, *engine.bundle.model.preprocessing.input_shape)
            # Ordinary numbers: zeros would let a runtime skip work. Both engines see the same ones.
            feed = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
            self._subjects[name] = Subject(
                session=session,
                feeds={engine.bundle.inputs[0].name: feed},
                runtime=engine.runtime,
                precision=str(engine.bundle.tags.get("precision", "fp32")),
                threads=engine.threads,
            )
        self._opening_s, self._measuring_s = self._clock_s() - start, 0.0
        self.openings += 1


def bursts_of(report: LatencyReport) -> list[list[float]]:
    """The samples of a report by rounds, which all have the same number of calls."""
    rounds = int(str(report.environment["rounds"]))
    size = report.n // rounds
    return [list(report.samples_ms[start : start + size]) for start in range(0, report.n, size)]


def _require_whole(report: LatencyReport) -> None:
    if len(report.samples_ms) != report.n:
        raise AssertionError(f"a unit of {report.n} calls is longer than the samples that a report keeps")
