"""The measuring loop: warm-up by time, then rounds in which engines take turns until every median is known well enough.

Engines are not timed one after the other: clocks drift, neighbours come and go, and the last one measured would win or
lose by the hour. They take turns in rounds, each round in a new random order; a turn is one untimed call, which refills
the caches that the previous engine used, and a short timed burst. How a call is made is a `Timer`'s affair: in this
process (`CallTimer`), or in another one that answers over a pipe.

The loop neither opens engines nor judges what it found.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from edgekd.core.rounds import FEWEST, Interval, median_interval, round_medians

FEWEST_ROUNDS = FEWEST
"""Below this there is no 95 % interval of a median."""
LARGEST_BURST = 100
CHECK_EVERY = 5
_LOOK_S = 0.001


class TurnFailed(Exception):
    """An engine cannot go on; the message says why, in a sentence."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how carefully to time.

    Attributes:
        warmup_s: Untimed running time of each engine before the first round.
        burst_s: Length of one engine's timed turn.
        min_rounds: Rounds before which precision is not asked for; time that is up ends it earlier, after six.
        max_rounds: Rounds after which to stop in any case.
        duration_s: Time per engine after which no new round starts.
        precision: Stop when the 95 % interval of every median is narrower than this fraction of it.
    """

    warmup_s: float = 0.3
    burst_s: float = 0.01
    min_rounds: int = 20
    max_rounds: int = 300
    duration_s: float = 3.0
    precision: float = 0.01


class Timer(Protocol):
    """One engine that can be called and timed. Both methods raise `TurnFailed` when it cannot go on."""

    def warm_up(self, seconds: float) -> tuple[int, int]:
        """Calls the engine for so long, three times at least; (calls, nanoseconds of the fastest one)."""

    def turn(self, calls: int) -> list[int]:
        """Nanoseconds of each of `calls` calls, made after one that is not timed."""


class CallTimer:
    """Times a function of this process.

    Args:
        call: One inference. What it raises passes through; wrap it to raise `TurnFailed` where others shall go on.
        clock_ns: Monotonic nanoseconds.
    """

    def __init__(self, call: Callable[[], object], clock_ns: Callable[[], int] = time.perf_counter_ns) -> None:
        self._call = call
        self._clock_ns = clock_ns

    def warm_up(self, seconds: float) -> tuple[int, int]:
        start, fastest, calls = self._clock_ns(), 0, 0
        while calls < 3 or self._clock_ns() - start < seconds * 1e9:
            took = self._timed()
            fastest = took if calls == 0 else min(fastest, took)
            calls += 1
        return calls, fastest

    def turn(self, calls: int) -> list[int]:
        self._call()
        return [self._timed() for _ in range(calls)]

    def _timed(self) -> int:
        start = self._clock_ns()
        self._call()
        return self._clock_ns() - start


def settle(
    limit_s: float = 0.1,
    *,
    used_s: Callable[[], float] = time.process_time,
    clock_s: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Waits until this process leaves the processor alone, or the limit is over.

    Threads of a runtime look out for more work for a while after a call: those of ONNX Runtime for 30 ms, on a core
    that belongs to the next engine's turn.

    Args:
        limit_s: The longest wait.
        used_s: Processor time that all threads of this process took so far.
        clock_s: Monotonic seconds.
        sleep: Waits for so many seconds.
    """
    end, quiet = clock_s() + limit_s, 0
    while quiet < 2 and clock_s() < end:
        used, start = used_s(), clock_s()
        sleep(_LOOK_S)
        busy = used_s() - used > 0.2 * (clock_s() - start)
        quiet = 0 if busy else quiet + 1


@dataclass(kw_only=True)
class Samples:
    """The timings of one engine.

    Attributes:
        warmup_n: Untimed calls before the first round.
        burst: Timed calls in a round.
        rounds_ns: Timings by round, in the order they were taken; all engines of a run share their rounds.
    """

    warmup_n: int = 0
    burst: int = 1
    rounds_ns: list[list[int]] = field(default_factory=list)

    def median_ns(self) -> Interval:
        """The median of the rounds' medians and its 95 % interval."""
        return median_interval(round_medians(self.rounds_ns))


@dataclass(kw_only=True)
class Sampling:
    """What a run of the loop found.

    Attributes:
        samples: By name, of the engines that held out to the end.
        failures: By name, of those that did not; nothing of them is kept.
        precise: The loop stopped because the question was answered, not because time or rounds were used up.
    """

    samples: dict[str, Samples]
    failures: dict[str, TurnFailed]
    precise: bool


Enough = Callable[[Mapping[str, Samples]], bool]
"""Whether the timings so far answer the question; asked every few rounds."""


def all_precise(precision: float) -> Enough:
    """The question of a profile: is each median known to within `precision`?"""

    def enough(samples: Mapping[str, Samples]) -> bool:
        return all(found.enough and found.width <= precision for found in (s.median_ns() for s in samples.values()))

    return enough


def sample(
    timers: Mapping[str, Timer],
    plan: Plan,
    *,
    seed: int = 0,
    enough: Enough | None = None,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
    on_round: Callable[[float], None] = lambda done: None,
) -> Sampling:
    """Timings of every engine that did not fail; one that fails leaves the others alone.

    Args:
        timers: Engines by name, all open at once.
        plan: How long to measure.
        seed: Of the order within rounds.
        enough: When to stop before the time is up; by default when every median is as precise as planned.
        clock_ns: Monotonic nanoseconds, for the time that is allowed.
        on_round: Called after each round with the fraction of the work that is done, in [0, 1].
    """
    failures: dict[str, TurnFailed] = {}
    samples: dict[str, Samples] = {}
    rng = random.Random(seed)
    for name, timer in timers.items():
        try:
            calls, fastest = timer.warm_up(plan.warmup_s)
        except TurnFailed as err:
            failures[name] = err
            continue
        burst = max(1, min(LARGEST_BURST, round(plan.burst_s * 1e9 / max(fastest, 1))))
        samples[name] = Samples(warmup_n=calls, burst=burst)
    answered, start, rounds, precise = enough or all_precise(plan.precision), clock_ns(), 0, False
    while samples:
        order = list(samples)
        rng.shuffle(order)
        for name in order:
            try:
                samples[name].rounds_ns.append(timers[name].turn(samples[name].burst))
            except TurnFailed as err:
                failures[name] = err
                del samples[name]
        rounds += 1
        used = max(rounds / plan.max_rounds, (clock_ns() - start) / 1e9 / (plan.duration_s * max(1, len(samples))))
        on_round(min(1.0, used))
        asked = rounds >= plan.min_rounds and (rounds - plan.min_rounds) % CHECK_EVERY == 0
        precise = bool(samples) and (asked or used >= 1) and rounds >= FEWEST_ROUNDS and answered(samples)
        if precise or (used >= 1 and rounds >= FEWEST_ROUNDS):
            break
    return Sampling(samples=samples, failures=failures, precise=precise)
