"""The loop by itself; through the profiler it is tested in tests/profiling/test_measure.py."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from edgekd.profiling.agent.loop import CallTimer, Plan, Samples, TurnFailed, sample, settle
from tests.profiling.fakes import Clock

PLAN = Plan(warmup_s=0.01, burst_s=0.004, min_rounds=20, max_rounds=60, duration_s=10.0)


class Engine:
    """Takes `ms`, and fails at a call."""

    def __init__(self, clock: Clock, ms: float, fails_at: int | None = None) -> None:
        self.clock, self.ms, self.fails_at, self.calls = clock, ms, fails_at, 0

    def __call__(self) -> None:
        self.calls += 1
        if self.calls == self.fails_at:
            raise TurnFailed("it broke")
        self.clock.now_ns += round(self.ms * 1e6)


def test_a_turn_makes_one_call_that_is_not_timed() -> None:
    clock = Clock()
    engine = Engine(clock, 2.0)
    assert CallTimer(engine, clock).turn(3) == [2_000_000] * 3
    assert engine.calls == 4


def test_engines_of_a_run_share_their_rounds() -> None:
    clock = Clock()
    timers = {name: CallTimer(Engine(clock, ms), clock) for name, ms in (("fast", 0.5), ("slow", 3.0))}
    found = sample(timers, PLAN, clock_ns=clock)
    assert found.precise
    assert len(found.samples["fast"].rounds_ns) == len(found.samples["slow"].rounds_ns) == 20
    assert (found.samples["fast"].burst, found.samples["slow"].burst) == (8, 1)


def test_a_slow_engine_ends_after_six_rounds_when_the_time_is_up() -> None:
    clock = Clock()
    plan = Plan(warmup_s=0, min_rounds=20, duration_s=5.0)
    found = sample({"slow": CallTimer(Engine(clock, 4000.0), clock)}, plan, clock_ns=clock)
    assert len(found.samples["slow"].rounds_ns) == 6
    assert found.precise, "six equal rounds are an interval"


def test_nothing_is_kept_of_an_engine_that_failed() -> None:
    clock = Clock()
    timers = {"a": CallTimer(Engine(clock, 1.0), clock), "b": CallTimer(Engine(clock, 1.0, fails_at=40), clock)}
    found = sample(timers, PLAN, clock_ns=clock)
    assert list(found.samples) == ["a"]
    assert str(found.failures["b"]) == "it broke"


def test_a_run_whose_engines_all_failed_is_over_and_answers_nothing() -> None:
    clock = Clock()
    found = sample({"a": CallTimer(Engine(clock, 1.0, fails_at=30), clock)}, PLAN, clock_ns=clock)
    assert (found.samples, found.precise) == ({}, False)


def test_another_question_decides_when_to_stop() -> None:
    clock, asked = Clock(), list[int]()

    def enough(samples: Mapping[str, Samples]) -> bool:
        asked.append(len(samples["a"].rounds_ns))
        return len(asked) == 3

    found = sample({"a": CallTimer(Engine(clock, 1.0), clock)}, PLAN, clock_ns=clock, enough=enough)
    assert asked == [20, 25, 30]
    assert found.precise


def test_the_order_of_turns_depends_on_the_seed_alone() -> None:
    def order(seed: int) -> list[str]:
        clock, log = Clock(), list[str]()

        class Noted(Engine):
            def __call__(self) -> None:
                super().__call__()
                log.append(f"{self.ms}")

        sample({str(ms): CallTimer(Noted(clock, ms), clock) for ms in (1.0, 2.0, 3.0)}, PLAN, seed=seed, clock_ns=clock)
        return log

    assert order(1) == order(1)
    assert order(1) != order(2)


@pytest.mark.parametrize("rounds", [1, 5])
def test_too_few_rounds_are_never_enough(rounds: int) -> None:
    assert not Samples(rounds_ns=[[1000]] * rounds).median_ns().enough


def rested_after(spins_s: float, limit_s: float) -> float:
    """When a process whose threads spin for so long is left alone, by a clock that moves with the waiting."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    settle(limit_s, used_s=lambda: min(now[0], spins_s), clock_s=lambda: now[0], sleep=sleep)
    return now[0]


def test_a_turn_is_over_when_the_threads_of_the_engine_have_come_to_rest() -> None:
    assert rested_after(spins_s=0.03, limit_s=0.1) == pytest.approx(0.032, abs=0.0015)
    assert rested_after(spins_s=0.0, limit_s=0.1) == pytest.approx(0.002)


def test_a_process_that_never_rests_is_not_waited_for_longer_than_the_limit() -> None:
    assert rested_after(spins_s=60, limit_s=0.1) == pytest.approx(0.1, abs=0.002)
