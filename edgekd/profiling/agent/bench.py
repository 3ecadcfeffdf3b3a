"""The process that opens engines and times them: the part that a runtime may crash or hang.

It leaves a pulse before each thing that it does, so that the worker which watches it knows which engine it was busy
with when it died or stopped. A pulse is one small write outside of what is timed. Standard library of Python 3.10 only.

The entries of a job's `engines`: `runtime`, `file` (digest), `kind` (`onnx` or `engine`), `inputs` (name and shape, a
name for a free axis), `threads`, `batch`, `precision`, `fold_weights`, `bound_to`. Beside them stand `plan`, `seed`,
`lock_clocks`, `reserve_mib`, `stall_s`, `open_s`, `limit_s` and `queue_s`.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgekd.core.packing import packed
from edgekd.profiling.agent.clocks import clock_state
from edgekd.profiling.agent.energy import energy_of_calls, meter_here
from edgekd.profiling.agent.engines import Engine, open_engine
from edgekd.profiling.agent.facts import Watch, available_mib, floating, state
from edgekd.profiling.agent.folder import Folder
from edgekd.profiling.agent.jobs import SPEC_FILE
from edgekd.profiling.agent.loop import CallTimer, Plan, Samples, Timer, TurnFailed, sample, settle
from edgekd.profiling.agent.queue import STATUS_FILE
from edgekd.profiling.agent.wire import AgentError, read_json, write_json

PULSE_FILE = "pulse"
MEASURED_FILE = "measured.json"
OPENING, RUNNING, BETWEEN = "open", "run", "between"
ENERGY_S = 1.0
WRITE_FAILED = 100
"""Exit codes from here on: the results could not be written, and the code of the system's error is added."""
KEPT_OUTPUTS = 4096
"""Values of each output that are brought home, so that they can be compared with another machine's."""
_PR_SET_PDEATHSIG = 1
_PULSE_BYTES = 48
_STATUS_EVERY_S = 1.0


class Pulse:
    """Says which engine is being worked on: phase, index, counter.

    Args:
        path: One line of fixed length, written in place.
    """

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        self._count = 0

    def beat(self, phase: str, index: int) -> None:
        """Before something that may not come back."""
        self._count += 1
        os.pwrite(self._handle, f"{phase} {index} {self._count}".ljust(_PULSE_BYTES).encode(), 0)

    def close(self) -> None:
        """Ends it."""
        os.close(self._handle)


def pulse_in(path: Path) -> tuple[str, int, int] | None:
    """(phase, index, counter) of the last beat; None before the first."""
    try:
        phase, index, count = path.read_text().split()
        return phase, int(index), int(count)
    except (OSError, ValueError):
        return None


class PulsedTimer:
    """A timer whose turns leave a pulse, and whose errors become those of one engine alone; see `Timer`."""

    def __init__(self, engine: Engine, index: int, pulse: Pulse) -> None:
        self._timer = CallTimer(engine.run)
        self._index = index
        self._pulse = pulse

    def warm_up(self, seconds: float) -> tuple[int, int]:
        self._pulse.beat(RUNNING, self._index)
        try:
            found = self._timer.warm_up(seconds)
            settle()
            return found
        except Exception as err:
            raise TurnFailed(f"it could not run on the board: {err}") from err

    def turn(self, calls: int) -> list[int]:
        self._pulse.beat(RUNNING, self._index)
        try:
            found = self._timer.turn(calls)
            settle()
            return found
        except Exception as err:
            raise TurnFailed(f"it stopped running on the board: {err}") from err


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
    before = {**state(), **clock_state()}
    engines, failures = _opened(folder, spec, indices, pulse, tell)
    left = [index for index in indices if index not in engines and str(index) not in failures]
    timers: dict[str, Timer] = {str(index): PulsedTimer(engine, index, pulse) for index, engine in engines.items()}
    watch, began = Watch(), time.perf_counter()

    def on_round(done: float) -> None:
        watch.look()
        tell(f"measure {len(timers)} engines", done)

    found = sample(timers, Plan(**spec["plan"]), seed=int(spec["seed"]), on_round=on_round)
    took_s = time.perf_counter() - began
    pulse.beat(BETWEEN, -1)
    circumstances = {
        "precise": found.precise,
        "before": before,
        "after": {**state(), **clock_state()},
        "took_s": took_s,
        "floating": floating(watch),
    }
    failures.update({index: str(failure) for index, failure in found.failures.items()})
    measured = {
        index: _entry(engines[int(index)], samples, pulse, int(index)) for index, samples in found.samples.items()
    }
    try:
        write_json(job / MEASURED_FILE, {"measured": measured, "failures": failures, "left": left, **circumstances})
    except OSError as err:
        os._exit(WRITE_FAILED + (err.errno or 0))  # no engine's fault
    # Not closed one by one: a runtime that crashes while it is torn down must not take what was measured with it.
    os._exit(0)


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
            engines[index] = open_engine(entry, folder.file(str(entry["file"])), folder.engines)
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
