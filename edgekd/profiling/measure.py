"""From timings to latencies: the plan of a measurement, engines timed in this process, and the report of their samples.

The loop itself is `edgekd.profiling.agent.loop`. Engines that may crash or hang are measured in processes of their own
by `edgekd.profiling.isolated`; this process serves where thousands of trusted tiny graphs are timed, and in tests.
It does not open engines and does not judge.
"""

from __future__ import annotations

import gc
import statistics
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, JsonValue

from edgekd.core.packing import packed
from edgekd.core.report import DeviceTime, LatencyReport, MlPerf
from edgekd.core.rounds import Interval
from edgekd.core.schema import Schema
from edgekd.core.stats import quantile, thinned
from edgekd.errors import EdgekdError
from edgekd.profiling.agent.loop import CallTimer, Plan, Samples, Timer, TurnFailed, sample
from edgekd.runtimes.session import OwnClock, Session

KEPT_SAMPLES = 2000
REGION = (
    "one call of the engine with host arrays, transfers included: copying the input in, running, copying the logits "
    "out; preprocessing and opening the engine are not in it"
)

COMPUTE_REGION = (
    "compute only, between two CUDA events around the execution on its stream; transfers and the part of the host are "
    "not in it"
)


class MeasurePlan(Schema):
    """How long and how carefully to time.

    Attributes:
        warmup_s: Untimed running time of each engine before the first round.
        burst_s: Length of one engine's timed turn.
        min_rounds: Rounds before which precision is not asked for; time that is up ends it earlier, after 6, the fewest
            that give a 95 % interval of the median.
        max_rounds: Rounds after which to stop in any case.
        duration_s: Time per engine after which no new round starts.
        precision: Stop early when the interval of every median is narrower than this fraction of it.
    """

    warmup_s: float = Field(default=0.3, ge=0)
    burst_s: float = Field(default=0.01, gt=0)
    min_rounds: int = Field(default=20, ge=6)
    max_rounds: int = Field(default=300, ge=6)
    duration_s: float = Field(default=3.0, gt=0)
    precision: float = Field(default=0.01, gt=0)

    @property
    def loop(self) -> Plan:
        """The same as the agent's loop takes it."""
        return Plan(**self.model_dump())


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One open engine and what to feed it.

    Attributes:
        session: Open; closing it is the caller's affair.
        feeds: Input arrays by name, of the batch that is timed.
        runtime: Registry name.
        precision: As the candidate's tags say.
        threads: As the session was opened with.
        batch: Images per call.
    """

    session: Session
    feeds: Mapping[str, NDArray[np.float32]]
    runtime: str
    precision: str
    threads: int
    batch: int = 1


class Profiler:
    """Measures engines of this process, with a clock that tests can replace.

    Args:
        clock_ns: Monotonic nanoseconds.
    """

    def __init__(self, clock_ns: Callable[[], int] = time.perf_counter_ns) -> None:
        self._clock_ns = clock_ns

    def measure_interleaved(
        self,
        subjects: Mapping[str, Subject],
        plan: MeasurePlan,
        *,
        seed: int = 0,
        on_round: Callable[[float], None] = lambda done: None,
    ) -> dict[str, LatencyReport | EdgekdError]:
        """A latency for each subject, or the error that it raised; one broken engine does not stop the others.

        Args:
            subjects: Engines by name, all open at once.
            plan: How long to measure.
            seed: Of the order within rounds.
            on_round: Called after each round with the fraction of the work that is done, in [0, 1].
        """
        timers = {name: _timer(subject, self._clock_ns) for name, subject in subjects.items()}
        with _no_collection():
            found = sample(timers, plan.loop, seed=seed, clock_ns=self._clock_ns, on_round=on_round)
        outcomes: dict[str, LatencyReport | EdgekdError] = {}
        for name, subject in subjects.items():
            if name in found.failures:
                outcomes[name] = _error(found.failures[name])
                continue
            outcomes[name] = latency_report(
                found.samples[name],
                runtime=subject.runtime,
                precision=subject.precision,
                threads=subject.threads,
                batch=subject.batch,
                session=subject.session.environment(),
                asked=plan.precision,
            )
        return outcomes


def latency_report(
    samples: Samples,
    *,
    runtime: str,
    precision: str,
    threads: int,
    batch: int,
    session: Mapping[str, JsonValue],
    asked: float,
) -> LatencyReport:
    """The report of an engine's timings.

    Args:
        samples: Of the loop.
        runtime: Registry name.
        precision: As the candidate's tags say.
        threads: As the session was opened with.
        batch: Images per call.
        session: What the session says of itself.
        asked: Width of the median's interval that was asked for, as a fraction.
    """
    found, values = samples.median_ns(), [ns / 1e6 for times in samples.rounds_ns for ns in times]
    p50, p90, mean = statistics.median(values), quantile(values, 0.90), statistics.fmean(values)
    return LatencyReport(
        origin="measured",
        runtime=runtime,
        provider=str(session.get("provider", runtime)),
        precision=precision,
        threads=threads,
        batch=batch,
        region=str(session.get("timed_region", REGION)),
        n=len(values),
        warmup_n=samples.warmup_n,
        mean_ms=mean,
        p50_ms=p50,
        p90_ms=p90,
        p95_ms=quantile(values, 0.95),
        p99_ms=quantile(values, 0.99),
        min_ms=min(values),
        max_ms=max(values),
        std_ms=statistics.pstdev(values),
        # The median of all samples can fall just outside the interval of the rounds' medians; it is an estimate of it.
        median_low_ms=min(found.low / 1e6, p50),
        median_high_ms=max(found.high / 1e6, p50),
        throughput_per_s=1000 * batch / mean,
        samples_ms=thinned(values, KEPT_SAMPLES),
        environment={
            "session": dict(session),
            "rounds": len(samples.rounds_ns),
            "independent_rounds": round(found.effective_n, 1),
        },
        rounds_packed=packed(samples.rounds_ns),
        inconclusive=why_inconclusive(found, asked, len(samples.rounds_ns)),
        mlperf=MlPerf(single_stream_p90_ms=p90) if batch == 1 else None,
    )


def new_turns() -> str:
    """A name for engines that take turns with each other, unlike any other; see `LatencyReport.turns`."""
    return uuid.uuid4().hex


def device_time(rounds_ns: list[list[int]]) -> DeviceTime:
    """The times of an engine on its device alone, from bursts of calls."""
    found, values = Samples(rounds_ns=rounds_ns).median_ns(), [ns / 1e6 for times in rounds_ns for ns in times]
    p50 = statistics.median(values)
    return DeviceTime(
        region=COMPUTE_REGION,
        n=len(values),
        p50_ms=p50,
        p90_ms=quantile(values, 0.90),
        p99_ms=quantile(values, 0.99),
        median_low_ms=min(found.low / 1e6, p50),
        median_high_ms=max(found.high / 1e6, p50),
    )


def why_inconclusive(found: Interval, asked: float, rounds: int) -> str | None:
    """A sentence when a median is known less well than was asked."""
    if found.enough and found.width <= asked:
        return None
    few = "" if found.enough else ", and too few independent rounds to trust even that"
    # 1.02 % against 1 % must not read as 1.0 % against 1.0 %.
    decimals = next((d for d in (1, 2) if f"{found.width:.{d}%}" != f"{asked:.{d}%}"), 3)
    return (
        f"The 95 % interval of the median is {found.width:.{decimals}%} wide after {rounds} rounds, "
        f"{asked:.{decimals}%} was asked{few}."
    )


def _timer(subject: Subject, clock_ns: Callable[[], int]) -> Timer:
    """Of this process's clock, or of the engine's own where it runs elsewhere."""
    if isinstance(subject.session, OwnClock):
        return _Theirs(subject.session.timer(subject.feeds))
    return CallTimer(_call(subject), clock_ns)


class _Theirs:
    """A `Timer` of the loop on one that raises the errors of a session."""

    def __init__(self, timer: Timer) -> None:
        self._timer = timer

    def warm_up(self, seconds: float) -> tuple[int, int]:
        try:
            return self._timer.warm_up(seconds)
        except EdgekdError as err:
            raise TurnFailed(err.message) from err

    def turn(self, calls: int) -> list[int]:
        try:
            return self._timer.turn(calls)
        except EdgekdError as err:
            raise TurnFailed(err.message) from err


def _call(subject: Subject) -> Callable[[], object]:
    def call() -> object:
        try:
            return subject.session.infer(subject.feeds)
        except EdgekdError as err:
            raise TurnFailed(err.message) from err

    return call


def _error(failed: TurnFailed) -> EdgekdError:
    return failed.__cause__ if isinstance(failed.__cause__, EdgekdError) else EdgekdError(str(failed))


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keeps the garbage collector out of the timed calls."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
