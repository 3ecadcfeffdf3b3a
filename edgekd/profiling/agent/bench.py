"""The process that opens engines and times them: the part that a runtime may crash or hang.

It leaves a pulse before each thing that it does (`pulse.py`), so that the worker which watches it knows which engine
it was busy with when it died or stopped. Standard library of Python 3.10 only.

The entries of a job's `engines`: `runtime`, `files` (digests, first the one that the runtime opens), `kind` (`onnx` or
`engine`), `inputs` (name and shape, a name for a free axis), `threads`, `batch`, `precision`, `fold_weights`,
`fingerprint`. Beside them stand `plan`, `seed`, `lock_clocks`, `layers` (whether to record them), `reserve_mib`,
`stall_s`, `open_s`, `limit_s` and `queue_s`; for a gate also `units`, see `bench_units.py`.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgekd.core.packing import packed
from edgekd.profiling.agent.bench_units import measured_in_units
from edgekd.profiling.agent.clocks import clock_state
from edgekd.profiling.agent.energy import energy_of_calls, meter_here
from edgekd.profiling.agent.engines import Engine, open_engine
from edgekd.profiling.agent.extras import extras_of
from edgekd.profiling.agent.facts import Watch, available_mib, floating, state
from edgekd.profiling.agent.folder import Folder
from edgekd.profiling.agent.jobs import SPEC_FILE
from edgekd.profiling.agent.loop import Plan, Samples, Timer, sample
from edgekd.profiling.agent.pulse import BETWEEN, EXTRAS, OPENING, PULSE_FILE, RUNNING, Pulse, PulsedTimer
from edgekd.profiling.agent.queue import STATUS_FILE
from edgekd.profiling.agent.wire import AgentError, read_json, write_json

MEASURED_FILE = "measured.json"
ENERGY_S = 1.0
WRITE_FAILED = 100
"""Exit codes from here on: the results could not be written, and the code of the system's error is added."""
KEPT_OUTPUTS = 4096
"""Values of each output that are brought home, so that they can be compared with another machine's."""
_PR_SET_PDEATHSIG = 1
_STATUS_EVERY_S = 1.0


def bench(folder: Folder, job_id: str, indices: list[int], share: tuple[float, float]) -> None:
    """Times some engines of a job against each other and writes what it found beside the job.

    Args:
        folder: Of the agent.
        job_id: Of the job.
        indices: Which of its engines.
        share: Begin and end of this work within the whole job's, in [0, 1].
    """
    _die_with_worker()
    job = folder.jobs / job_id
    spec = read_json(job / SPEC_FILE) or {}
    pulse = Pulse(job / PULSE_FILE)
    tell = _Teller(job, share, [str(spec["engines"][index]["label"]) for index in indices])
    watch, before = Watch(), {**state(), **clock_state()}
    began = time.perf_counter()
    engines: dict[int, Engine] = {}
    if "units" in spec:
        doing = f"measure {len(indices)} engines"

        def on_unit(done: float) -> None:
            watch.look()
            tell(doing, done)

        tell(doing, 0.0)
        found = {**measured_in_units(folder, spec, indices, pulse, on_unit), "left": [], "precise": True}
        found |= {"took_s": time.perf_counter() - began, "after": {**state(), **clock_state()}}
    else:
        engines, failures = _opened(folder, spec, indices, pulse, tell)
        found = _in_turns(spec, engines, failures, pulse, tell, watch)
        found["left"] = [i for i in indices if i not in engines and str(i) not in failures]
    pulse.beat(BETWEEN, -1)
    found = {"before": before, "floating": floating(watch), **found}
    _write(job, found)
    for index, entry in found["measured"].items():
        if int(index) in engines:
            engine, beat = engines[int(index)], functools.partial(pulse.beat, EXTRAS, int(index))
            entry |= extras_of(engine, layers=bool(spec.get("layers")), beat=beat)
    if engines:
        _write(job, found)
    # Not closed one by one: a runtime that crashes while it is torn down must not take what was measured with it.
    os._exit(0)


def _write(job: Path, found: dict[str, Any]) -> None:
    try:
        write_json(job / MEASURED_FILE, found)
    except OSError as err:
        os._exit(WRITE_FAILED + (err.errno or 0))  # no engine's fault


def _in_turns(
    spec: dict[str, Any],
    engines: dict[int, Engine],
    failures: dict[str, str],
    pulse: Pulse,
    tell: _Teller,
    watch: Watch,
) -> dict[str, Any]:
    """Engines that are open together, in turns until each median is known."""
    timers: dict[str, Timer] = {str(index): PulsedTimer(engine, index, pulse) for index, engine in engines.items()}
    began = time.perf_counter()

    def on_round(done: float) -> None:
        watch.look()
        tell(f"measure {len(timers)} engines", done)

    found = sample(timers, Plan(**spec["plan"]), seed=int(spec["seed"]), on_round=on_round)
    took_s = time.perf_counter() - began
    pulse.beat(BETWEEN, -1)
    after = {**state(), **clock_state()}
    failed = {**failures, **{index: str(failure) for index, failure in found.failures.items()}}
    measured = {
        index: _entry(engines[int(index)], samples, pulse, int(index)) for index, samples in found.samples.items()
    }
    return {
        "measured": measured, "failures": failed,
        "precise": found.precise, "took_s": took_s, "after": after,
    }  # fmt: skip


def _entry(engine: Engine, samples: Samples, pulse: Pulse, index: int) -> dict[str, Any]:
    """What goes home of an engine that was timed."""
    return {
        "warmup_n": samples.warmup_n,
        "timings": packed(samples.rounds_ns),
        "facts": engine.facts(),
        "outputs": [values[:KEPT_OUTPUTS] for values in engine.outputs()],
        "energy": _energy(engine, pulse, index),
    }


def _energy(engine: Engine, pulse: Pulse, index: int) -> dict[str, Any] | None:
    """What the board's meter says of a second of calls; None where it has none."""
    meter = meter_here()
    if meter is None:
        return None

    def call_for(seconds: float) -> int:
        end, calls = time.monotonic() + seconds, 0
        while calls == 0 or time.monotonic() < end:
            engine.run()
            calls += 1
        return calls

    pulse.beat(RUNNING, index)
    try:
        return dataclasses.asdict(energy_of_calls(call_for, meter, ENERGY_S))
    except Exception:  # noqa: BLE001 - an extra that fails costs only itself; the latency was measured before
        return None


def _die_with_worker() -> None:
    """Asks the kernel to end this process with its parent: a hang that nobody watches would hold the board for ever."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, AttributeError):
        return  # no Linux


def _opened(
    folder: Folder, spec: dict[str, Any], indices: list[int], pulse: Pulse, tell: Callable[[str, float], None]
) -> tuple[dict[int, Engine], dict[str, str]]:
    """Engines by index, and why others did not open.

    Opens one after the other as long as memory lasts, the first one in any case: those that are in neither of the
    answers are left for another process.
    """
    engines: dict[int, Engine] = {}
    failures: dict[str, str] = {}
    largest_mib = 0.0
    for index in indices:
        entry, before = spec["engines"][index], available_mib()
        if engines and before is not None and before < largest_mib + float(spec["reserve_mib"]):
            break
        tell(f"open {entry['label']}", 0.0)
        pulse.beat(OPENING, index)
        try:
            engines[index] = open_engine(entry, folder.files(entry["files"]), folder.engines)
        except AgentError as err:
            failures[str(index)] = err.message + (f" ({err.hint})" if err.hint else "")
            continue
        largest_mib = max(largest_mib, (before or 0) - (available_mib() or 0))
    return engines, failures


class _Teller:
    """Writes how far the work is, now and then."""

    def __init__(self, job: Path, share: tuple[float, float], labels: list[str]) -> None:
        self._path = job / STATUS_FILE
        self._status = {**(read_json(self._path) or {}), "state": "running", "engines": labels}
        self._share = share
        self._last_s = -_STATUS_EVERY_S

    def __call__(self, doing: str, done: float) -> None:
        if time.monotonic() - self._last_s < _STATUS_EVERY_S and doing == self._status.get("doing"):
            return
        self._last_s = time.monotonic()
        low, high = self._share
        self._status = {**self._status, "doing": doing, "progress": round(low + (high - low) * done, 3)}
        with contextlib.suppress(OSError):  # a full disk costs the progress, not the measurement
            write_json(self._path, self._status)
