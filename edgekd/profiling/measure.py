"""Times several engines against each other so that the comparison survives a noisy machine.

Engines are not timed one after the other: clocks drift, neighbours come and go, and the last one measured would win or
lose by the hour. They take turns in rounds, each round in a new random order; a turn is one untimed inference (which
refills the caches the previous engine used) and a short timed burst. Values within a burst depend on each other, rounds
hardly do, so the interval of the median comes from the medians of the rounds.

It does not open engines and does not judge.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgekd.core.report import LatencyReport
from edgekd.core.schema import Schema
from edgekd.core.stats import quantile, quantile_interval, thinned
from edgekd.errors import EdgekdError
from edgekd.runtimes.session import Session

KEPT_SAMPLES = 2000
REGION = (
    "one call of the engine with host arrays: copying the input in, running, copying the logits out; preprocessing and "
    "opening the engine are not in it"
)


class MeasurePlan(Schema):
    """How long and how carefully to time.

    Attributes:
        warmup_s: Untimed running time of each engine before the first round.
        burst_s: Length of one engine's timed turn.
        min_rounds: Rounds that are always made; 6 are the fewest that give a 95 % interval of the median.
        max_rounds: Rounds after which to stop in any case.
        duration_s: Time per engine after which no new round starts, once `min_rounds` are made.
        precision: Stop early when the interval of every median is within this fraction of it, on both sides.
    """

    warmup_s: float = Field(default=0.3, ge=0)
    burst_s: float = Field(default=0.01, gt=0)
    min_rounds: int = Field(default=20, ge=6)
    max_rounds: int = Field(default=300, ge=6)
    duration_s: float = Field(default=3.0, gt=0)
    precision: float = Field(default=0.01, gt=0)


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


@dataclass
class _Record:
    """What is known of one subject while it is being measured."""

    subject: Subject
    warmup_n: int = 0
    burst: int = 1
    rounds_ms: list[list[float]] = field(default_factory=list)


class Profiler:
    """Measures with a clock that tests can replace.

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
        failed: dict[str, LatencyReport | EdgekdError] = {}
        records: dict[str, _Record] = {}
        rng = random.Random(seed)
        with _no_collection():
            for name, subject in subjects.items():
                try:
                    records[name] = self._warmed_up(subject, plan)
                except EdgekdError as err:
                    failed[name] = err
            start, rounds = self._clock_ns(), 0
            while records and not self._enough(records, plan, start, rounds):
                order = list(records)
                rng.shuffle(order)
                for name in order:
                    try:
                        self._turn(records[name])
                    except EdgekdError as err:
                        failed[name] = err
                        del records[name]
                rounds += 1
                if records:
                    on_round(min(1.0, max(rounds / plan.max_rounds, self._spent(start) / _allowed_s(records, plan))))
        reports = {name: _report(record) for name, record in records.items()}
        return {name: failed[name] if name in failed else reports[name] for name in subjects}

    def _warmed_up(self, subject: Subject, plan: MeasurePlan) -> _Record:
        """Runs until the time is over (three times at least) and sizes the burst by the fastest call seen."""
        record = _Record(subject)
        start, fastest_ns = self._clock_ns(), 0
        while record.warmup_n < 3 or self._spent(start) < plan.warmup_s:
            took = self._timed_ns(subject)
            fastest_ns = took if record.warmup_n == 0 else min(fastest_ns, took)
            record.warmup_n += 1
        record.burst = max(1, min(100, round(plan.burst_s * 1e9 / max(fastest_ns, 1))))
        return record

    def _turn(self, record: _Record) -> None:
        subject = record.subject
        subject.session.infer(subject.feeds)
        record.rounds_ms.append([self._timed_ns(subject) / 1e6 for _ in range(record.burst)])

    def _timed_ns(self, subject: Subject) -> int:
        start = self._clock_ns()
        subject.session.infer(subject.feeds)
        return self._clock_ns() - start

    def _enough(self, records: Mapping[str, _Record], plan: MeasurePlan, start: int, rounds: int) -> bool:
        if rounds < plan.min_rounds:
            return False
        if rounds >= plan.max_rounds or self._spent(start) >= _allowed_s(records, plan):
            return True
        return all(_is_precise(record, plan.precision) for record in records.values())

    def _spent(self, start: int) -> float:
        return (self._clock_ns() - start) / 1e9


def _allowed_s(records: Mapping[str, _Record], plan: MeasurePlan) -> float:
    return plan.duration_s * len(records)


def _is_precise(record: _Record, precision: float) -> bool:
    low, high = _median_interval(record.rounds_ms)
    middle = statistics.median(record.rounds_ms[-1])
    return high - low <= 2 * precision * middle


def _median_interval(rounds_ms: list[list[float]]) -> tuple[float, float]:
    medians = [statistics.median(values) for values in rounds_ms]
    return quantile_interval(medians, 0.5) or (min(medians), max(medians))


def _report(record: _Record) -> LatencyReport:
    subject, samples = record.subject, [value for values in record.rounds_ms for value in values]
    facts = subject.session.environment()
    p50, mean = statistics.median(samples), statistics.fmean(samples)
    low, high = _median_interval(record.rounds_ms)
    return LatencyReport(
        origin="measured",
        runtime=subject.runtime,
        provider=str(facts.get("provider", subject.runtime)),
        precision=subject.precision,
        threads=subject.threads,
        batch=subject.batch,
        region=REGION,
        n=len(samples),
        warmup_n=record.warmup_n,
        mean_ms=mean,
        p50_ms=p50,
        p90_ms=quantile(samples, 0.90),
        p95_ms=quantile(samples, 0.95),
        p99_ms=quantile(samples, 0.99),
        min_ms=min(samples),
        max_ms=max(samples),
        std_ms=statistics.pstdev(samples),
        # The median of all samples can fall just outside the interval of the rounds' medians; it is an estimate of it.
        median_low_ms=min(low, p50),
        median_high_ms=max(high, p50),
        throughput_per_s=1000 * subject.batch / mean,
        samples_ms=thinned(samples, KEPT_SAMPLES),
        environment={"session": facts, "rounds": len(record.rounds_ms)},
    )


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
