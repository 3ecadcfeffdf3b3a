"""The measuring process at work for a gate: units of measurement until the time of the job is up.

Which answer the units give is decided by whoever asked; each one comes home with the second at which it ended, so that
a test that looks after every unit sees the same as if it had stood beside the board. Standard library of Python 3.10
only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from edgekd.core.packing import packed
from edgekd.profiling.agent.engines import Engine, open_engine
from edgekd.profiling.agent.folder import Folder
from edgekd.profiling.agent.loop import Plan, Timer, TurnFailed
from edgekd.profiling.agent.pulse import OPENING, Pulse, PulsedTimer
from edgekd.profiling.agent.units import UnitFailed, Units
from edgekd.profiling.agent.wire import AgentError


def measured_in_units(
    folder: Folder,
    spec: dict[str, Any],
    indices: list[int],
    pulse: Pulse,
    on_unit: Callable[[float], None],
    clock_s: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """`measured`, `failures` and `unit_ends_s`; a failure of one engine leaves nothing measured.

    Args:
        folder: Of the agent.
        spec: The job; `units` says for how many `seconds`, of how many units at `most`, and the `plan` of each.
        indices: Of its engines.
        pulse: Beats before each opening and each turn.
        on_unit: Called after each unit with the share of the time that is spent, in [0, 1].
        clock_s: Monotonic seconds.
    """
    asked, opened = spec["units"], dict[str, Engine]()

    def open_one(name: str) -> Timer:
        if name in opened:
            opened.pop(name).close()
        entry = spec["engines"][int(name)]
        pulse.beat(OPENING, int(name))
        try:
            opened[name] = open_engine(entry, folder.files(entry["files"]), folder.engines)
        except AgentError as err:
            raise UnitFailed(name, TurnFailed(err.message + (f" ({err.hint})" if err.hint else ""))) from err
        return PulsedTimer(opened[name], int(name), pulse)

    names = [str(index) for index in indices]
    timings: dict[str, list[str]] = {name: [] for name in names}
    warmups, ends = dict.fromkeys(names, 0), list[float]()
    units = Units(names, open_one, plan=Plan(**asked["plan"]), seed=int(spec["seed"]), clock_s=clock_s)
    try:
        for name in names:
            if _is_built(spec["engines"][int(name)]):
                open_one(name)  # it is kept: minutes of building are no part of measuring, nor of what opening takes
        start = clock_s()
        while not ends or (len(ends) < int(asked["most"]) and ends[-1] < float(asked["seconds"])):
            for name, samples in units().items():
                timings[name].append(packed(samples.rounds_ns))
                warmups[name] += samples.warmup_n
            ends.append(clock_s() - start)
            on_unit(min(1.0, ends[-1] / float(asked["seconds"])))
    except UnitFailed as err:
        return {"measured": {}, "failures": {err.name: str(err.cause)}, "unit_ends_s": []}
    measured = {n: {"units": timings[n], "warmup_n": warmups[n], "facts": opened[n].facts()} for n in names}
    return {"measured": measured, "failures": {}, "unit_ends_s": ends}


def _is_built(entry: dict[str, Any]) -> bool:
    """Whether opening builds an engine from a graph when it is not kept yet."""
    return bool(entry["runtime"] == "tensorrt" and entry["kind"] == "onnx")
