"""Measures the designed set of networks on a device and fits the target's latency model to it.

How a network gets its time is a callable: this machine's is here; one that reaches a board takes the same files and
returns the same medians.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx

from edgekd.core.report import LatencyReport
from edgekd.errors import DeviceUnavailable, EdgekdError
from edgekd.profiling.measure import MeasurePlan, Profiler, Subject
from edgekd.profiling.predict.nets import Net, probe_nets
from edgekd.profiling.predict.roofline import Timing, fitted_model
from edgekd.runtimes.session import RUNTIMES
from edgekd.targets.calibration import Calibration
from edgekd.targets.latency import latency_model_from_target
from edgekd.targets.schema import Target

Medians = Mapping[str, float | EdgekdError]
Measure = Callable[[Mapping[str, Path]], Medians]
"""ONNX files by name, each with one input `images` of fixed float32 shape, to the median latency in ms of each at
batch 1, or to the error that stands in its place. All of them in one run, taking turns."""

_FEWEST = 6
"""A roofline has so many numbers; with fewer networks the prior decides."""


def nets_for(target: Target, runtime: str) -> tuple[Net, ...]:
    """The designed set in the precisions that the runtime has on the target."""
    support = target.support(runtime)
    whole = support is not None and "int8" in support.precisions
    return (*probe_nets("fp32"), *(probe_nets("int8") if whole else ()))


def timings_from(nets: Sequence[Net], measure: Measure, folder: Path) -> tuple[list[Timing], list[str]]:
    """A timing for each network that ran, and a sentence on each that did not.

    Args:
        nets: What to time.
        measure: See `Measure`.
        folder: Takes the networks' files.
    """
    paths = {}
    for net in nets:
        paths[net.name] = folder / f"{net.name}.onnx"
        onnx.save(net.model, paths[net.name])
    found = measure(paths)
    timed, failed = [], []
    for net in nets:
        median = found[net.name]
        if isinstance(median, EdgekdError):
            failed.append(f"{net.name} was not timed: {median.message}")
        else:
            timed.append(Timing(costs=net.costs, precision=net.precision, p50_ms=median))
    return timed, failed


def local_measure(
    runtime: str, *, threads: int, duration_s: float, seed: int = 0, on_done: Callable[[float], None] = lambda _: None
) -> Measure:
    """Times ONNX files on this machine, interleaved.

    Args:
        runtime: Registry name; must be installed and open ONNX files.
        threads: CPU threads.
        duration_s: Measuring time per network, at most.
        seed: Of the order and of the inputs.
        on_done: Called with the fraction that is done.
    """

    def measure(paths: Mapping[str, Path]) -> Medians:
        plan = MeasurePlan(warmup_s=0.05, burst_s=0.005, duration_s=duration_s, precision=0.04)
        with ExitStack() as stack:
            subjects = {}
            for name, path in paths.items():
                shape = onnx.load(path, load_external_data=False).graph.input[0].type.tensor_type.shape
                images = np.random.default_rng(seed).random([d.dim_value for d in shape.dim], dtype=np.float32)
                subjects[name] = Subject(
                    session=stack.enter_context(RUNTIMES.get(runtime).open(path, threads=threads, batch=1)),
                    feeds={"images": images},
                    runtime=runtime,
                    precision="int8" if name.endswith("int8") else "fp32",
                    threads=threads,
                )
            found = Profiler().measure_interleaved(subjects, plan, seed=seed, on_round=on_done)
        return {
            name: latency.p50_ms if isinstance(latency, LatencyReport) else latency for name, latency in found.items()
        }

    return measure


def calibration_of(
    target: Target, runtime: str, threads: int, measure: Measure, folder: Path, *, version: str | None = None
) -> Calibration:
    """The calibration of a device that `measure` reaches.

    Args:
        target: The device's card; its numbers stand in for what the timings do not determine.
        runtime: In which `measure` runs the networks.
        threads: With which it runs them.
        measure: See `Measure`.
        folder: Takes the networks' files.
        version: Of the runtime on the device; when not given, the one that is installed here.

    Raises:
        DeviceUnavailable: Too few networks could be timed; the message holds the reasons.
    """
    timings, failures = timings_from(nets_for(target, runtime), measure, folder)
    if sum(timing.precision == "fp32" for timing in timings) < _FEWEST:
        raise DeviceUnavailable(
            f"{target.name} was not calibrated: {len(timings)} networks could be timed, {_FEWEST} in FP32 are needed "
            f"({'; '.join(failures) or 'none failed'})."
        )
    version = version or RUNTIMES.get(runtime).availability().version
    return Calibration(
        target=target.name,
        device=target.description,
        runtime=f"{runtime} {version}" if version else runtime,
        threads=threads,
        networks=len(timings),
        measured_at=datetime.now(UTC).date().isoformat(),
        model=fitted_model(timings, latency_model_from_target(target)),
    )
