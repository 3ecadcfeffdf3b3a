"""Where a latency table is timed: in processes of this machine where it is the target, else on the target's board."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from edgekd.core.blobs import Blobs
from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.events import Reporter
from edgekd.core.report import LatencyReport
from edgekd.core.stage import BoardAccess
from edgekd.errors import DeviceUnavailable, EdgekdError
from edgekd.profiling.agent.loop import Enough, all_precise
from edgekd.profiling.compare import CONFIDENCE, ratios_precise
from edgekd.profiling.isolated import Engine, Extras, measure_isolated
from edgekd.profiling.measure import MeasurePlan
from edgekd.profiling.remote.calibrate import board_calibrator
from edgekd.profiling.remote.request import BoardPlan, candidate_from_bundle
from edgekd.runtimes.session import RUNTIMES
from edgekd.targets.schema import Precision, Target

Latencies: TypeAlias = Mapping[str, LatencyReport | EdgekdError]
Time: TypeAlias = Callable[[Mapping[str, ModelBundle], Blobs], tuple[Latencies, tuple[str, ...]]]
"""Engines by name to the latency of each, or the error in its place, all of them by turns in one run; and sentences."""


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How engines are timed.

    Attributes:
        threads: CPU threads.
        duration_s: Of each engine, at most.
        interval: Stop early when the 95 % interval of every engine's ratio to the first one is narrower than this; on a
            board, when that of every median is narrower than this fraction of it.
        seed: Of the order.
        reporter: Told of progress.
    """

    threads: int
    duration_s: float
    interval: float
    seed: int
    reporter: Reporter


@dataclass(frozen=True, kw_only=True)
class Device:
    """The target, with the runtime that engines are timed in."""

    runtime: str
    time: Time


def device_for(
    target: Target, board: BoardAccess | None, precision: Precision, runtime: str | None, manner: Manner
) -> Device:
    """This machine, or the board.

    Args:
        target: Its card.
        board: How the target is reached; None where it is this machine.
        precision: Of the engines.
        runtime: That is wanted; None takes the first of the card's that runs the precision there.
        manner: How to time.

    Raises:
        UserError: A card that holds facts of this machine, for a board.
        DeviceUnavailable: There is no such runtime, or the board cannot be used.
    """
    if board is None:
        return _here(target, precision, runtime, manner)
    found = board_calibrator(board, target)
    if runtime is not None:
        found = replace(found, runtime=runtime)
    _require_precision(target, found.runtime, precision)

    def time(engines: Mapping[str, ModelBundle], blobs: Blobs) -> tuple[Latencies, tuple[str, ...]]:
        plan = BoardPlan(
            threads=(manner.threads,), duration_s=manner.duration_s, precision=manner.interval, seed=manner.seed
        )
        candidates = [candidate_from_bundle(name, bundle, blobs) for name, bundle in engines.items()]
        return found.latencies(candidates, plan, manner.reporter)

    return Device(runtime=found.runtime, time=time)


def _here(target: Target, precision: Precision, wanted: str | None, manner: Manner) -> Device:
    runtime = wanted or _first_here(target, precision)
    _require_precision(target, runtime, precision)

    def time(engines: Mapping[str, ModelBundle], blobs: Blobs) -> tuple[Latencies, tuple[str, ...]]:
        task = f"time {len(engines)} engines, percent"
        manner.reporter.progress(task, 0, 100)
        found = measure_isolated(
            {name: Engine(bundle=bundle, runtime=runtime, threads=manner.threads) for name, bundle in engines.items()},
            blobs,
            MeasurePlan(duration_s=manner.duration_s, precision=manner.interval),
            seed=manner.seed,
            extras=Extras(energy_s=0.1),
            enough=precise_beside(next(iter(engines)), manner.interval),
            on_round=lambda done: manner.reporter.progress(task, round(99 * done), 100),
        )
        manner.reporter.progress(task, 100, 100)
        return found.outcomes, tuple(found.notes)

    return Device(runtime=runtime, time=time)


def precise_beside(first: str, interval: float) -> Enough:
    """Whether the ratio of every engine to the first is known, or its median where that one takes no turns with them,
    for want of memory."""
    ratios, medians = ratios_precise(first, interval, CONFIDENCE), all_precise(interval)
    return lambda samples: (ratios if first in samples else medians)(samples)


def _first_here(target: Target, precision: Precision) -> str:
    """The first runtime of the card that is installed, opens graphs, and runs the precision."""
    for support in target.runtimes:
        runtime = RUNTIMES.get(support.runtime)
        if precision in support.precisions and BundleKind.ONNX in runtime.accepts and runtime.availability().ok:
            return support.runtime
    raise DeviceUnavailable(
        f"No runtime of {target.name} that is installed here runs {precision.upper()} graphs, so that none can be "
        "timed.",
        hint="edgekd doctor says what is missing; prune.follow=latency goes by a prediction",
    )


def _require_precision(target: Target, runtime: str, precision: Precision) -> None:
    support = target.support(runtime)
    if support is None or precision not in support.precisions:
        known = ", ".join(f"{entry.runtime} ({', '.join(entry.precisions)})" for entry in target.runtimes)
        raise DeviceUnavailable(
            f"{target.name} does not run {precision.upper()} in {runtime}.", hint=f"its card has {known}"
        )
    if BundleKind.ONNX not in RUNTIMES.get(runtime).accepts:
        raise DeviceUnavailable(
            f"Engines are timed as ONNX graphs, and {runtime} runs none.",
            hint="name another runtime of the card, or none for the first that runs them",
        )
