"""The profiler, by a clock that only moves when an engine works."""

from __future__ import annotations

import gc
from itertools import groupby

import pytest

from edgekd.core.report import LatencyReport
from edgekd.errors import EdgekdError
from edgekd.profiling.measure import KEPT_SAMPLES, REGION, MeasurePlan, Profiler
from tests.profiling.fakes import Clock, FakeSession, FarSession, subject

PLAN = MeasurePlan(warmup_s=0.01, burst_s=0.004, min_rounds=10, max_rounds=40, duration_s=1.0)


def test_a_steady_engine_is_measured_exactly() -> None:
    clock = Clock()
    report = Profiler(clock).measure_interleaved({"a": subject(FakeSession(clock, lambda _: 2.0))}, PLAN)["a"]
    assert isinstance(report, LatencyReport)
    assert (report.p50_ms, report.p99_ms, report.std_ms) == (2.0, 2.0, 0.0)
    assert (report.median_low_ms, report.median_high_ms) == (2.0, 2.0)
    assert report.throughput_per_s == 500
    assert report.provider == "FakeProvider"
    assert report.origin == "measured"
    assert report.n == len(report.samples_ms) == 20, "10 rounds of bursts of 4 ms"


def test_an_engine_in_another_process_is_timed_by_its_own_clock() -> None:
    clock = Clock()
    engines = {"far": subject(FarSession(clock, lambda _: 2.0)), "near": subject(FakeSession(clock, lambda _: 2.0))}
    found = Profiler(clock).measure_interleaved(engines, PLAN)
    far, near = found["far"], found["near"]
    assert isinstance(far, LatencyReport)
    assert isinstance(near, LatencyReport)
    assert far.p50_ms == near.p50_ms == 2.0
    assert (far.region, near.region) == ("there", REGION)


def test_an_engine_in_another_process_that_breaks_is_an_error_in_its_place() -> None:
    clock = Clock()
    broken = subject(FarSession(clock, lambda _: 2.0, fails_at=9))
    engines = {"far": broken, "near": subject(FakeSession(clock, lambda _: 2.0))}
    found = Profiler(clock).measure_interleaved(engines, PLAN)
    assert isinstance(found["far"], EdgekdError)
    assert "engine broke" in found["far"].message
    assert isinstance(found["near"], LatencyReport)


def test_warm_up_is_never_in_the_samples() -> None:
    clock = Clock()
    slow_start = FakeSession(clock, lambda call: 50.0 if call <= 3 else 1.0)
    report = Profiler(clock).measure_interleaved({"a": subject(slow_start)}, PLAN)["a"]
    assert isinstance(report, LatencyReport)
    assert report.max_ms == 1.0
    assert report.warmup_n >= 3


def test_engines_take_turns_in_an_order_that_changes() -> None:
    clock, log = Clock(), list[str]()
    sessions = {n: FakeSession(clock, lambda _: 1.0, log=log, name=n) for n in ("a", "b", "c")}
    Profiler(clock).measure_interleaved({n: subject(s) for n, s in sessions.items()}, PLAN)
    turns = [name for name, _ in groupby(log)]
    orders = {tuple(turns[i : i + 3]) for i in range(3, len(turns) - 3, 3)}
    assert len(orders) > 2


def test_a_drifting_machine_does_not_favour_the_engine_that_is_measured_first() -> None:
    clock = Clock()

    def slower_and_slower(_: int) -> float:
        return 1.0 + clock.now_ns / 1e9

    names = ("first", "second", "third")
    sessions = {name: FakeSession(clock, slower_and_slower) for name in names}
    plan = PLAN.model_copy(update={"precision": 1e-6, "max_rounds": 60})
    found = Profiler(clock).measure_interleaved({n: subject(s) for n, s in sessions.items()}, plan)
    medians = [report.p50_ms for report in found.values() if isinstance(report, LatencyReport)]
    assert max(medians) / min(medians) < 1.02


def test_the_interval_covers_noise_between_rounds_and_not_only_within_them() -> None:
    clock = Clock()
    session = FakeSession(clock, lambda _: 1.0 if (clock.now_ns // 20_000_000) % 2 else 1.5)
    plan = PLAN.model_copy(update={"max_rounds": 60})
    report = Profiler(clock).measure_interleaved({"a": subject(session)}, plan)["a"]
    assert isinstance(report, LatencyReport)
    assert report.median_low_ms <= report.p50_ms <= report.median_high_ms
    assert report.median_high_ms - report.median_low_ms >= 0.4


def test_measuring_stops_early_when_every_median_is_precise_and_goes_on_when_not() -> None:
    clock = Clock()
    steady, shaky = FakeSession(clock, lambda _: 1.0), FakeSession(clock, lambda call: 1.0 + (call // 7) % 5)
    alone = Profiler(clock).measure_interleaved({"steady": subject(steady)}, PLAN)["steady"]
    both = Profiler(clock).measure_interleaved({"steady": subject(steady), "shaky": subject(shaky)}, PLAN)["steady"]
    assert isinstance(alone, LatencyReport)
    assert isinstance(both, LatencyReport)
    assert alone.environment["rounds"] == PLAN.min_rounds
    assert both.environment["rounds"] == PLAN.max_rounds


def test_measuring_stops_when_the_time_is_over() -> None:
    clock = Clock()
    plan = PLAN.model_copy(update={"precision": 1e-9, "duration_s": 0.2, "max_rounds": 1000})
    shaky = FakeSession(clock, lambda call: 1.0 + call % 3)
    Profiler(clock).measure_interleaved({"a": subject(shaky)}, plan)
    assert 0.2 <= clock.now_ns / 1e9 < 0.3


@pytest.mark.parametrize("fails_at", [1, 30])
def test_a_broken_engine_does_not_stop_the_others(fails_at: int) -> None:
    clock = Clock()
    subjects = {
        "good": subject(FakeSession(clock, lambda _: 1.0)),
        "bad": subject(FakeSession(clock, lambda _: 1.0, fails_at=fails_at, name="bad")),
    }
    found = Profiler(clock).measure_interleaved(subjects, PLAN)
    assert list(found) == ["good", "bad"]
    assert isinstance(found["good"], LatencyReport)
    assert isinstance(found["bad"], EdgekdError)
    assert "bad broke" in str(found["bad"])


def test_progress_rises_to_one() -> None:
    clock, seen = Clock(), list[float]()
    plan = PLAN.model_copy(update={"precision": 1e-9})
    shaky = FakeSession(clock, lambda call: 1.0 + (call * 7919 % 101) / 50)
    Profiler(clock).measure_interleaved({"a": subject(shaky)}, plan, on_round=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_kept_samples_are_thinned_and_the_count_is_not() -> None:
    clock = Clock()
    plan = MeasurePlan(warmup_s=0, burst_s=0.1, min_rounds=30, max_rounds=30, duration_s=100)
    report = Profiler(clock).measure_interleaved({"a": subject(FakeSession(clock, lambda _: 0.5))}, plan)["a"]
    assert isinstance(report, LatencyReport)
    assert report.n == 3000
    assert len(report.samples_ms) == KEPT_SAMPLES


def test_garbage_collection_is_off_while_timing_and_back_on_afterwards() -> None:
    clock, states = Clock(), list[bool]()

    def cost(_: int) -> float:
        states.append(gc.isenabled())
        return 1.0

    Profiler(clock).measure_interleaved({"a": subject(FakeSession(clock, cost))}, PLAN)
    assert not any(states)
    assert gc.isenabled()
