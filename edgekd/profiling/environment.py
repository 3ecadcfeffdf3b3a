"""What the machine was like while it measured: read-only facts from /proc, /sys and psutil.

A latency without them cannot be compared with another one. `machine()` names the device; `state()` is taken before and
after a measurement, and `warnings_from_states` says what in them makes the numbers less trustworthy.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
from pydantic import JsonValue

CPU_FOLDER = Path("/sys/devices/system/cpu")
STEADY_GOVERNOR = "performance"


def machine() -> dict[str, JsonValue]:
    """What stays: processor, cores, memory, system."""
    return {
        "cpu_model": _cpu_model(),
        "cores": os.cpu_count() or 1,
        "memory_mib": psutil.virtual_memory().total // 2**20,
        "architecture": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def fingerprint(facts: Mapping[str, JsonValue], versions: Mapping[str, str]) -> str:
    """One line that two profiles must share before their milliseconds may be compared.

    Args:
        facts: Of `machine()`.
        versions: Of the runtimes that were measured, by name.
    """
    runtimes = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    device = f"{facts['cpu_model']}, {facts['cores']} cores, {facts['architecture']}"
    return f"{device}; {runtimes}" if runtimes else device


def state(cpu_folder: Path = CPU_FOLDER) -> dict[str, JsonValue]:
    """What changes: load, clock, governor, temperature, affinity, processor time taken by other guests of the host.

    `busy_share` is what the processors do during the fifth of a second that this call takes, so call it while this
    process is idle; `load_1m` still remembers what it did before.
    """
    busy = psutil.cpu_percent(interval=0.2) / 100
    frequency = psutil.cpu_freq()
    times = psutil.cpu_times()
    return {
        "busy_share": round(busy, 3),
        "load_1m": round(os.getloadavg()[0], 2),
        "frequency_mhz": round(frequency.current) if frequency else None,
        "governor": _governor(cpu_folder),
        "temperature_c": _hottest_c(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "steal_s": getattr(times, "steal", None),
    }


def warnings_from_states(before: Mapping[str, JsonValue], after: Mapping[str, JsonValue], took_s: float) -> list[str]:
    """Sentences on what may have disturbed a measurement that took `took_s`; empty when nothing is known to have."""
    found = []
    busy, cores = before.get("busy_share"), before.get("usable_cores")
    if isinstance(busy, float) and busy > 0.15:
        found.append(f"{busy:.0%} of the processor time went to other work when measuring began.")
    governor = before.get("governor")
    if isinstance(governor, str) and governor != STEADY_GOVERNOR:
        found.append(f"The clock governor is {governor!r}, so that frequencies moved; {STEADY_GOVERNOR!r} is steadier.")
    stolen = _difference(before, after, "steal_s")
    if stolen is not None and isinstance(cores, int) and stolen > 0.02 * took_s * cores:
        share = stolen / (took_s * cores)
        found.append(f"The hypervisor gave {share:.0%} of the processor time to other guests while measuring.")
    clock_before, clock_after = before.get("frequency_mhz"), after.get("frequency_mhz")
    if isinstance(clock_before, int) and isinstance(clock_after, int) and clock_after < 0.9 * clock_before:
        found.append(f"The clock fell from {clock_before} to {clock_after} MHz: the device may have throttled.")
    return found


def _difference(before: Mapping[str, JsonValue], after: Mapping[str, JsonValue], key: str) -> float | None:
    first, last = before.get(key), after.get(key)
    return last - first if isinstance(first, float) and isinstance(last, float) else None


def _cpu_model() -> str:
    """The processor's name: x86 says it in /proc/cpuinfo, an ARM board in its device tree."""
    for path, prefix in ((Path("/proc/cpuinfo"), "model name"), (Path("/proc/device-tree/model"), "")):
        if path.exists():
            lines: Sequence[str] = path.read_text(errors="replace").splitlines()
            for line in lines:
                if line.startswith(prefix):
                    return line.rpartition(":")[2].strip(" \t\0")
    return platform.processor() or platform.machine()


def _governor(cpu_folder: Path) -> str | None:
    """The governor of all cores, joined when they differ; None where the system shows none (most virtual machines)."""
    found = {path.read_text().strip() for path in cpu_folder.glob("cpu[0-9]*/cpufreq/scaling_governor")}
    return "+".join(sorted(found)) or None


def _hottest_c() -> float | None:
    read = getattr(psutil, "sensors_temperatures", None)  # absent on macOS and Windows
    if read is None:
        return None
    values = [sensor.current for sensors in read().values() for sensor in sensors]
    return max(values) if values else None
