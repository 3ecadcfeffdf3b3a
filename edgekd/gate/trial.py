"""The loop of a gate that measures: a unit, the questions, another unit, until the answer is clear or the time is up.

How a unit is measured is a callable's affair, so that this knows neither engines nor processes, and tests need neither.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgekd.core.report import Check, LatencyReport
from edgekd.core.stats import quantile, quantile_interval, thinned
from edgekd.gate.questions import Question, Unit, flat

KEPT_SAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A finished trial.

    Attributes:
        checks: One for each question.
        units: Everything that was measured.
        seconds: From the first unit to the last answer.
    """

    checks: tuple[Check, ...]
    units: tuple[Unit, ...]
    seconds: float


def run_trial(
    measure: Callable[[], Unit],
    questions: Sequence[Question],
    *,
    time_limit_s: float,
    min_time_s: float = 0.0,
    clock_s: Callable[[], float],
    on_unit: Callable[[float], None] = lambda done: None,
) -> Trial:
    """Measures until every question is answered, one is answered with FAIL, or the time is up.

    Args:
        measure: Measures one unit.
        questions: At least one.
        time_limit_s: No unit is begun that would probably end after it; at least one is measured.
        min_time_s: No answer is read before, though it may seem clear: what disturbs a machine comes in bursts of a
            second or so, and a few of them should have come and gone.
        clock_s: Monotonic seconds.
        on_unit: Called after each unit with the share of the time that is spent, in [0, 1].
    """
    start, units = clock_s(), list[Unit]()
    while True:
        began = clock_s()
        unit = measure()
        units.append(unit)
        for question in questions:
            question.add(unit)
        now = clock_s()
        spent = now - start
        on_unit(min(1.0, spent / time_limit_s))
        answers = {question.status for question in questions}
        clear = "FAIL" in answers or None not in answers
        if (clear and spent >= min_time_s) or spent + (now - began) > time_limit_s:
            break
    return Trial(checks=tuple(q.check(spent) for q in questions), units=tuple(units), seconds=spent)


def latency_from_units(units: Sequence[Unit], engine: str, template: LatencyReport) -> LatencyReport:
    """One report of an engine over all units; the interval of the median comes from the medians of the units.

    Args:
        engine: Its name in the units.
        template: The report of one unit: what does not change between units is taken from it.
    """
    samples = [value for unit in units for value in flat(unit[engine])]
    medians = [statistics.median(flat(unit[engine])) for unit in units]
    low, high = quantile_interval(medians, 0.5) or (min(medians), max(medians))
    p50, mean = statistics.median(samples), statistics.fmean(samples)
    return template.model_copy(
        update={
            "n": len(samples),
            "warmup_n": template.warmup_n * len(units),
            "mean_ms": mean,
            "p50_ms": p50,
            "p90_ms": quantile(samples, 0.90),
            "p95_ms": quantile(samples, 0.95),
            "p99_ms": quantile(samples, 0.99),
            "min_ms": min(samples),
            "max_ms": max(samples),
            "std_ms": statistics.pstdev(samples),
            "median_low_ms": min(low, p50),
            "median_high_ms": max(high, p50),
            "throughput_per_s": 1000 * template.batch / mean,
            "samples_ms": thinned(samples, KEPT_SAMPLES),
            "environment": {**template.environment, "units": len(units)},
        }
    )
