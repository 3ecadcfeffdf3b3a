"""What else is asked of an engine once its latency is safe on the disk: its time on the device alone, and its layers.

Nothing of this can cost the measurement: a failure is a sentence, and a crash ends the process when the timings were
written already. Standard library of Python 3.10 only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from edgekd.core.packing import packed
from edgekd.profiling.agent.engines import Engine

COMPUTE_S = 1.0
"""Time of calling for the device's own times."""
BURST = 20
FEWEST_BURSTS = 6
"""Below this there is no 95 % interval of a median."""
LAYER_CALLS = 20


def extras_of(
    engine: Engine, *, layers: bool, beat: Callable[[], None], clock_s: Callable[[], float] = time.monotonic
) -> dict[str, Any]:
    """`compute` and `layers`, each only where the engine tells; what went wrong is in `failed`.

    Args:
        engine: Open and warm.
        layers: Record the times of layers; it is the last thing that is asked, for the engine runs slower from then on.
        beat: Called before each burst, which may hang.
        clock_s: Monotonic seconds.
    """
    found: dict[str, Any] = {}
    failed = []
    try:
        rounds = _compute_rounds(engine, beat, clock_s)
        if rounds:
            found["compute"] = packed(rounds)
    except Exception as err:  # noqa: BLE001 - an extra that fails costs only itself
        failed.append(f"its time on the device alone was not measured: {err}")
    if layers:
        beat()
        try:
            told = engine.layers(LAYER_CALLS)
            if told is not None:
                found["layers"] = told
        except Exception as err:  # noqa: BLE001 - as above
            failed.append(f"its layers were not recorded: {err}")
    if failed:
        found["failed"] = failed
    return found


def _compute_rounds(engine: Engine, beat: Callable[[], None], clock_s: Callable[[], float]) -> list[list[int]]:
    """Nanoseconds on the device by burst; empty where it has no clock of its own."""
    rounds: list[list[int]] = []
    end = clock_s() + COMPUTE_S
    while len(rounds) < FEWEST_BURSTS or clock_s() < end:
        beat()
        burst = engine.device_ns(BURST)
        if burst is None:
            return []
        rounds.append(burst)
    return rounds
