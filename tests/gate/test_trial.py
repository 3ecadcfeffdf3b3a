"""The loop, by a clock that moves only when a unit is measured."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from edgekd.core.report import Check, Status
from edgekd.gate.questions import Unit
from edgekd.gate.trial import latency_from_units, run_trial
from tests.gate.results import latency


@dataclass
class Bench:
    """Measures units of one second."""

    now: float = 0.0
    unit: Unit = field(default_factory=lambda: {"candidate": [[1.0, 2.0], [3.0, 4.0]]})

    def measure(self) -> Unit:
        self.now += 1.0
        return self.unit


@dataclass
class Script:
    """Answers after so many units."""

    after: int
    answer: Status
    seen: int = 0

    def add(self, unit: Unit) -> None:
        self.seen += 1

    @property
    def status(self) -> Status | None:
        return self.answer if self.seen >= self.after else None

    def check(self, seconds: float) -> Check:
        return Check(name="script", status=self.status or "INCONCLUSIVE", reason=f"{seconds:g} s")


@pytest.mark.parametrize(
    ("questions", "units", "answers"),
    [
        ([Script(3, "PASS")], 3, ["PASS"]),
        ([Script(3, "PASS"), Script(5, "PASS")], 5, ["PASS", "PASS"]),
        ([Script(2, "FAIL"), Script(9, "PASS")], 2, ["FAIL", "INCONCLUSIVE"]),
        ([Script(99, "PASS")], 10, ["INCONCLUSIVE"]),
    ],
)
def test_measuring_ends_when_all_is_clear_when_one_fails_or_when_the_time_is_up(
    questions: list[Script], units: int, answers: list[str]
) -> None:
    bench = Bench()
    trial = run_trial(bench.measure, questions, time_limit_s=10, clock_s=lambda: bench.now)
    assert (len(trial.units), trial.seconds) == (units, units)
    assert [check.status for check in trial.checks] == answers


def test_an_early_answer_waits_for_the_least_time() -> None:
    bench = Bench()
    trial = run_trial(bench.measure, [Script(1, "FAIL")], time_limit_s=10, min_time_s=4, clock_s=lambda: bench.now)
    assert len(trial.units) == 4


def test_one_unit_is_measured_however_short_the_time() -> None:
    bench = Bench()
    assert len(run_trial(bench.measure, [Script(9, "PASS")], time_limit_s=0.1, clock_s=lambda: bench.now).units) == 1


def test_progress_rises_to_the_end() -> None:
    bench, seen = Bench(), list[float]()
    run_trial(bench.measure, [Script(9, "PASS")], time_limit_s=4, clock_s=lambda: bench.now, on_unit=seen.append)
    assert seen == [0.25, 0.5, 0.75, 1.0]


def test_the_latency_of_all_units_counts_every_call_and_takes_its_interval_between_units() -> None:
    units: list[Unit] = [{"candidate": [[float(i), float(i)], [float(i), float(i)]]} for i in range(1, 12)]
    found = latency_from_units(units, "candidate", latency(99.0))
    assert (found.n, found.p50_ms, found.min_ms, found.max_ms) == (44, 6.0, 1.0, 11.0)
    assert (found.median_low_ms, found.median_high_ms) == (2.0, 10.0)
    assert found.environment["units"] == 11
