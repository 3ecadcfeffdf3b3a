"""The machine as a profile names it: facts of the agent, filled up where a system has neither /proc nor /sys.

`machine()` names the device, `fingerprint` is what two profiles must share; `state()` is taken before and after a
measurement, and `warnings_from_states` says what in them makes the numbers less trustworthy.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import psutil
from pydantic import JsonValue

from edgekd.profiling.agent import facts
from edgekd.profiling.agent.facts import warnings_from_states

__all__ = ["fingerprint", "machine", "state", "warnings_from_states"]


def machine() -> dict[str, JsonValue]:
    """What stays: processor, cores, memory, system."""
    found = facts.machine()
    if found["memory_mib"] is None:
        found["memory_mib"] = psutil.virtual_memory().total // 2**20
    return found


def fingerprint(facts: Mapping[str, JsonValue], versions: Mapping[str, str]) -> str:
    """One line that two profiles must share before their milliseconds may be compared.

    Args:
        facts: Of `machine()`.
        versions: Of the runtimes that were measured, by name.
    """
    runtimes = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    device = f"{facts['cpu_model']}, {facts['cores']} cores, {facts['architecture']}"
    return f"{device}; {runtimes}" if runtimes else device


def state(root: Path = facts.ROOT) -> dict[str, JsonValue]:
    """What changes; see `edgekd.profiling.agent.facts.state`. Elsewhere than on Linux psutil tells load and clock."""
    found = facts.state(root)
    if found["busy_share"] is None:
        found["busy_share"] = round(psutil.cpu_percent(interval=0.2) / 100, 3)
        frequency = psutil.cpu_freq()
        found["frequency_mhz"] = round(frequency.current) if frequency else None
    return found
