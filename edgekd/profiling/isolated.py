"""Measures engines in a process each: one that crashes or hangs is an error in its place, and the others go on.

All workers of a group are open at once and take turns; where memory does not suffice for all, there are several groups,
measured one after the other. What the device says of itself is read before, during and after: a device that throttled
while measuring has measured nothing. This module knows engines, not targets or candidates, and writes no report file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from pydantic import JsonValue

from edgekd.core.blobs import Blobs
from edgekd.core.bundle import ModelBundle
from edgekd.core.layers import LayerReport
from edgekd.core.report import Energy, LatencyReport, MlPerf
from edgekd.errors import EdgekdError, Inconclusive
from edgekd.profiling.agent import facts
from edgekd.profiling.agent.energy import meter_here
from edgekd.profiling.agent.loop import Enough, Sampling, sample
from edgekd.profiling.environment import machine, state, warnings_from_states
from edgekd.profiling.measure import MeasurePlan, latency_report, new_turns
from edgekd.profiling.process import LIMIT_S, WorkerLost, WorkerProcess, WorkerTimer

RESERVE_MIB = 512
"""Memory that is left to the rest of the machine."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A bundle in a runtime, not yet open.

    Attributes:
        bundle: What to open.
        runtime: Registry name.
        threads: CPU threads.
        batch: Images per call.
    """

    bundle: ModelBundle
    runtime: str
    threads: int = 1
    batch: int = 1

    @property
    def precision(self) -> str:
        return str(self.bundle.tags.get("precision", "fp32"))

    def request(self, blobs: Blobs, seed: int) -> dict[str, Any]:
        """What a worker must know to open it."""
        return {
            "bundle": self.bundle.to_json(),
            "files": {digest: str(blobs.path(digest)) for digest in self.bundle.files.values()},
            "runtime": self.runtime,
            "threads": self.threads,
            "batch": self.batch,
            "shapes": {spec.name: self._shape(spec.shape) for spec in self.bundle.inputs},
            "seed": seed,
        }

    def _shape(self, shape: tuple[int | str, ...]) -> list[int]:
        inner = shape[1:]
        if any(isinstance(size, str) for size in inner):
            inner = self.bundle.model.preprocessing.input_shape
        return [self.batch, *(int(size) for size in inner)]


@dataclass(frozen=True, kw_only=True)
class Extras:
    """What else to find out of each engine once its latency is known; nothing of it disturbs the timings.

    Attributes:
        layers: Record the layers' times.
        offline_samples: Samples of the Offline scenario; 0 leaves it out.
        offline_batch: Samples in a call of it.
        energy_s: Time of calling for the energy, where there is a meter.
        limit_s: Time for one request to a worker beyond what it is told to take.
    """

    layers: bool = False
    offline_samples: int = 0
    offline_batch: int = 1
    energy_s: float = 1.0
    limit_s: float = LIMIT_S


@dataclass(kw_only=True)
class Measured:
    """What was found, by the names of the engines.

    Attributes:
        outcomes: A latency, or the error that stands in its place.
        layers: Of those that tell, where it was asked for.
        notes: Sentences on what may have disturbed the measurement, and on extras that failed.
    """

    outcomes: dict[str, LatencyReport | EdgekdError] = field(default_factory=dict)
    layers: dict[str, LayerReport] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class _Open:
    """A worker with its engine open."""

    worker: WorkerProcess
    engine: Engine
    load_ms: float
    session: dict[str, JsonValue]


def measure_isolated(
    engines: Mapping[str, Engine],
    blobs: Blobs,
    plan: MeasurePlan,
    *,
    seed: int = 0,
    extras: Extras | None = None,
    enough: Enough | None = None,
    on_round: Callable[[float], None] = lambda done: None,
) -> Measured:
    """A latency for each engine, or the error in its place.

    Args:
        engines: By name.
        blobs: Finds the bundles' files.
        plan: How long to measure.
        seed: Of the order within rounds and of the inputs.
        extras: What else to find out.
        enough: When to stop before the time is up; by default when every median is as precise as planned.
        on_round: Called after each round with the fraction of the work that is done, in [0, 1].
    """
    wanted, found, left = extras or Extras(), Measured(), dict(engines)
    groups = 0
    while left:
        with ExitStack() as stack:
            opened: dict[str, _Open] = {}
            for name, result in _opened(left, blobs, seed, wanted, stack):
                del left[name]
                if isinstance(result, _Open):
                    opened[name] = result
                else:
                    found.outcomes[name] = result
            share = (len(engines) - len(left)) / len(engines)
            if opened:
                groups += 1
                _measure_group(opened, plan, seed, wanted, enough, _scaled(on_round, share), found)
    if groups > 1:
        found.notes.append(
            f"Memory did not suffice for {len(engines)} engines at once: they were measured in {groups} groups, and "
            "only engines of one group took turns with each other."
        )
    found.outcomes = {name: found.outcomes[name] for name in engines}
    return found


def _scaled(on_round: Callable[[float], None], share: float) -> Callable[[float], None]:
    return lambda done: on_round(done * share)


def _opened(
    engines: Mapping[str, Engine], blobs: Blobs, seed: int, extras: Extras, stack: ExitStack
) -> Iterator[tuple[str, _Open | EdgekdError]]:
    """Opens one after the other as long as memory lasts, the first one in any case."""
    largest_mib = 0.0
    for name, engine in list(engines.items()):
        available = facts.available_mib()
        if largest_mib and available is not None and available < largest_mib + RESERVE_MIB:
            return
        worker = stack.enter_context(WorkerProcess(name, engine.runtime, limit_s=extras.limit_s))
        try:
            answer = worker.ask("open", engine.request(blobs, seed))
        except EdgekdError as err:
            yield name, err
            continue
        largest_mib = max(largest_mib, facts.memory_mib(pid=str(worker.pid)).get("peak_mib", 0.0))
        yield name, _Open(worker=worker, engine=engine, load_ms=answer["load_ms"], session=answer["session"])


def _measure_group(
    opened: Mapping[str, _Open],
    plan: MeasurePlan,
    seed: int,
    extras: Extras,
    enough: Enough | None,
    on_round: Callable[[float], None],
    found: Measured,
) -> None:
    """Adds the outcomes of engines that are open together."""
    watch, before, began = facts.Watch(), state(), time.perf_counter()

    def look(done: float) -> None:
        watch.look()
        on_round(done)

    timers = {name: WorkerTimer(entry.worker) for name, entry in opened.items()}
    sampling = sample(timers, plan.loop, seed=seed, enough=enough, on_round=look)
    took_s, after = time.perf_counter() - began, state()
    context: dict[str, JsonValue] = {"machine": machine(), "before": before, "after": after}
    turns = new_turns()
    heat, moved = facts.throttled(before, after), facts.floating(watch)
    found.notes += [text for text in warnings_from_states(before, after, took_s) if text not in found.notes]
    for name, failure in sampling.failures.items():
        cause = failure.__cause__
        found.outcomes[name] = cause if isinstance(cause, EdgekdError) else EdgekdError(str(failure))
    for name in sampling.samples:
        if heat:
            found.outcomes[name] = Inconclusive(
                f"{heat} Nothing is recorded.", hint="cool it, lower its clocks, or measure for less long"
            )
            continue
        report = _report(opened[name], sampling, name, plan, context, moved)
        report = report.model_copy(update={"turns": turns})
        found.outcomes[name] = _with_extras(name, report, opened[name], extras, found)


def _report(
    entry: _Open, sampling: Sampling, name: str, plan: MeasurePlan, context: dict[str, JsonValue], moved: str | None
) -> LatencyReport:
    engine = entry.engine
    report = latency_report(
        sampling.samples[name],
        runtime=engine.runtime,
        precision=engine.precision,
        threads=engine.threads,
        batch=engine.batch,
        session=entry.session,
        asked=plan.precision,
    )
    reasons = " ".join(text for text in (report.inconclusive, moved) if text) or None
    return report.model_copy(
        update={
            "environment": {**report.environment, **context},
            "inconclusive": reasons,
            "load_ms": entry.load_ms,
        }
    )


def _with_extras(name: str, report: LatencyReport, entry: _Open, extras: Extras, found: Measured) -> LatencyReport:
    """The report with memory, energy and the Offline scenario; layers go to `found`. A failure costs only its extra."""
    update: dict[str, Any] = {}
    try:
        update["memory_peak_mib"] = entry.worker.ask("memory")
        if meter_here() is not None:
            joules = entry.worker.ask("energy", {"seconds": extras.energy_s}, takes_s=extras.energy_s)
            update["energy"] = None if joules is None else Energy.parse(joules, name)
        if extras.offline_samples:
            asked = {"samples": extras.offline_samples, "batch": extras.offline_batch}
            takes_s = extras.offline_samples * report.p50_ms / 1000
            update["mlperf"] = _offline(report, entry.worker.ask("offline", asked, takes_s=takes_s))
        if extras.layers:
            layers = entry.worker.ask("layers")
            if layers is not None:
                found.layers[name] = LayerReport.parse(layers, name)
    except EdgekdError as err:
        gone = " (its process is gone; the latency was measured before)" if isinstance(err, WorkerLost) else ""
        found.notes.append(f"{name}: {err.message}{gone}")
    return report.model_copy(update=update)


def _offline(report: LatencyReport, answer: Mapping[str, Any]) -> MlPerf:
    single = report.mlperf or MlPerf()
    return single.model_copy(
        update={
            "offline_per_s": answer["samples"] / answer["took_s"],
            "offline_samples": answer["samples"],
            "offline_batch": answer["batch"],
        }
    )
