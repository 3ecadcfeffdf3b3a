"""What the machine was like while it measured: read-only facts from /proc and /sys, and from two vendors' tools.

A latency without them cannot be compared with another one. `machine()` says what stays, `state()` what changes and is
taken before and after, a `Watch` looks on in between. What a system does not tell is None or missing, never a guess.
Nothing is set here: clocks and power modes are left as they are.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path("/")
STEADY_GOVERNOR = "performance"
THROTTLE_COUNTERS = ("core_throttle_count", "package_throttle_count")
PI_NOW, PI_SINCE_BOOT = 0xF, 0xF0000
"""Bits of `vcgencmd get_throttled`: under-voltage, capped, throttled, soft temperature limit; now, and since boot."""
_TOOL_S = 5.0


def machine(root: Path = ROOT) -> dict[str, Any]:
    """What stays: processor, cores, memory, system."""
    meminfo = _table(root / "proc/meminfo")
    total = re.match(r"\d+", meminfo.get("MemTotal", ""))
    return {
        "cpu_model": cpu_model(root),
        "board_model": (_text(root / "proc/device-tree/model") or "").strip(" \t\n\0") or None,
        "cores": os.cpu_count() or 1,
        "memory_mib": int(total[0]) // 1024 if total else None,
        "architecture": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def state(root: Path = ROOT, *, busy_for_s: float = 0.2, sleep: Callable[[float], None] = time.sleep) -> dict[str, Any]:
    """What changes: load, clocks, governor, temperatures, throttling, affinity, memory, time taken by other guests.

    `busy_share` is what the processors do during the `busy_for_s` that this call takes, so call it while this process
    is idle; `load_1m` still remembers what it did before.
    """
    before = _ticks(root)
    sleep(busy_for_s)
    after = _ticks(root)
    clocks = clocks_mhz(root)
    temperatures = temperatures_c(root)
    return {
        "busy_share": _busy_share(before, after),
        "load_1m": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "clocks_mhz": clocks,
        "frequency_mhz": max(clocks.values()) if clocks else None,
        "governor": _joined(root, "scaling_governor"),
        "clock_limit_mhz": _limit_mhz(root),
        "boost": _boost(root),
        "temperatures_c": temperatures,
        "temperature_c": max(temperatures.values()) if temperatures else None,
        "throttle_counts": throttle_counts(root),
        "affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_available_mib": available_mib(root),
        "steal_s": None if after is None else after["steal"],
        "power_mode": _power_mode(),
        "pi_throttled": pi_throttled(),
    }


def cpu_model(root: Path = ROOT) -> str:
    """The processor's name: x86 says it in /proc/cpuinfo, an ARM board in its device tree."""
    for path, prefix in ((root / "proc/cpuinfo", "model name"), (root / "proc/device-tree/model", "")):
        for line in (_text(path) or "").splitlines():
            if line.startswith(prefix):
                return line.rpartition(":")[2].strip(" \t\0")
    return platform.processor() or platform.machine()


def clocks_mhz(root: Path = ROOT) -> dict[str, int]:
    """The present clock of each core that tells; empty on most virtual machines without a `cpu MHz` line."""
    found = {}
    for path in _cores(root):
        khz = _number(path / "cpufreq/scaling_cur_freq")
        if khz is not None:
            found[path.name] = round(khz / 1000)
    if found:
        return found
    lines = re.findall(r"^cpu MHz\s*:\s*([\d.]+)", _text(root / "proc/cpuinfo") or "", re.MULTILINE)
    return {f"cpu{index}": round(float(mhz)) for index, mhz in enumerate(lines)}


def temperatures_c(root: Path = ROOT) -> dict[str, float]:
    """Degrees by the name of the thermal zone or sensor."""
    found = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        value = _number(zone / "temp")
        if value is not None and value > -100_000:  # a Jetson's sleeping GPU zone reads -256000
            found[f"{(_text(zone / 'type') or zone.name).strip()} ({zone.name})"] = value / 1000
    for path in sorted((root / "sys/class/hwmon").glob("hwmon*/temp*_input")):
        value = _number(path)
        if value is not None:
            found[f"{(_text(path.parent / 'name') or '').strip()} {path.name[:-6]} ({path.parent.name})"] = value / 1000
    return found


def throttle_counts(root: Path = ROOT) -> dict[str, int]:
    """How often each core and package was slowed because of heat, since boot; x86 alone counts this."""
    found = {}
    for core in _cores(root):
        for name in THROTTLE_COUNTERS:
            count = _number(core / "thermal_throttle" / name)
            if count is not None:
                found[f"{core.name}/{name}"] = int(count)
    return found


def pi_throttled() -> int | None:
    """The bits of a Raspberry Pi's `vcgencmd get_throttled`; None elsewhere."""
    said = _tool("vcgencmd", "get_throttled")
    found = re.search(r"throttled=(0x[0-9a-fA-F]+)", said or "")
    return int(found[1], 16) if found else None


def available_mib(root: Path = ROOT) -> int | None:
    """Memory that can be had without swapping."""
    found = re.match(r"\d+", _table(root / "proc/meminfo").get("MemAvailable", ""))
    return int(found[0]) // 1024 if found else None


def memory_mib(root: Path = ROOT, pid: str = "self") -> dict[str, float]:
    """Resident memory of a process, now and at its highest; empty where /proc is not there."""
    table = _table(root / "proc" / pid / "status")
    found = {}
    for key, name in (("VmRSS", "now_mib"), ("VmHWM", "peak_mib")):
        digits = re.match(r"\d+", table.get(key, ""))
        if digits:
            found[name] = int(digits[0]) / 1024
    return found


class Watch:
    """Looks at clocks and throttling while a measurement runs, once a second at most.

    Args:
        root: Where /proc and /sys are.
        clock_s: Monotonic seconds.
    """

    def __init__(self, root: Path = ROOT, clock_s: Callable[[], float] = time.monotonic, every_s: float = 1.0) -> None:
        self._root, self._clock_s, self._every_s = root, clock_s, every_s
        self._next = clock_s()
        self.fastest_mhz: list[int] = []

    def look(self) -> None:
        """Notes the clock of the fastest core: the one that works, where one core works."""
        if self._clock_s() < self._next:
            return
        self._next = self._clock_s() + self._every_s
        clocks = clocks_mhz(self._root)
        if clocks:
            self.fastest_mhz.append(max(clocks.values()))


def throttled(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """A sentence when the device says that it was slowed between two states; None when it does not say so."""
    counts = before.get("throttle_counts") or {}
    rose = {k: n - counts[k] for k, n in (after.get("throttle_counts") or {}).items() if k in counts and n > counts[k]}
    if rose:
        shown = ", ".join(f"{name} by {count}" for name, count in sorted(rose.items()))
        return f"The device throttled while measuring, because of heat: {shown}."
    bits_before, bits_after = before.get("pi_throttled"), after.get("pi_throttled")
    if isinstance(bits_before, int) and isinstance(bits_after, int):
        new = bits_after & PI_NOW | bits_after & ~bits_before & PI_SINCE_BOOT
        if new:
            return f"The Raspberry Pi throttled or lacked voltage while measuring (get_throttled={bits_after:#x})."
    return None


def floating(watch: Watch, tolerance: float = 0.1) -> str | None:
    """A sentence when the clock moved by more than `tolerance` while measuring; None when not, or when it is hidden."""
    seen = sorted(watch.fastest_mhz)
    if len(seen) < 3:
        return None
    low, high = seen[len(seen) // 10], seen[-1 - len(seen) // 10]  # a single odd reading is no movement
    if low >= (1 - tolerance) * high:
        return None
    return f"The clock moved between {low} and {high} MHz while measuring."


def warnings_from_states(before: Mapping[str, Any], after: Mapping[str, Any], took_s: float) -> list[str]:
    """Sentences on what may have disturbed a measurement that took `took_s`; empty when nothing is known to have."""
    found = []
    busy, cores = before.get("busy_share"), before.get("usable_cores")
    if isinstance(busy, float) and busy > 0.15:
        found.append(f"{busy:.0%} of the processor time went to other work when measuring began.")
    governor = before.get("governor")
    if isinstance(governor, str) and governor != STEADY_GOVERNOR:
        found.append(f"The clock governor is {governor!r}, so that frequencies moved; {STEADY_GOVERNOR!r} is steadier.")
    first, last = before.get("steal_s"), after.get("steal_s")
    stolen = last - first if isinstance(first, float) and isinstance(last, float) else None
    if stolen is not None and isinstance(cores, int) and stolen > 0.02 * took_s * cores:
        share = stolen / (took_s * cores)
        found.append(f"The hypervisor gave {share:.0%} of the processor time to other guests while measuring.")
    clock_before, clock_after = before.get("frequency_mhz"), after.get("frequency_mhz")
    if isinstance(clock_before, int) and isinstance(clock_after, int) and clock_after < 0.9 * clock_before:
        found.append(f"The clock fell from {clock_before} to {clock_after} MHz: the device may have throttled.")
    if before.get("power_mode") != after.get("power_mode"):
        found.append(f"The power mode changed from {before.get('power_mode')!r} to {after.get('power_mode')!r}.")
    bits = before.get("pi_throttled")
    if isinstance(bits, int) and bits & PI_NOW:
        found.append(f"The Raspberry Pi was throttled or lacked voltage before measuring (get_throttled={bits:#x}).")
    return found


def _ticks(root: Path) -> dict[str, float] | None:
    """Seconds that all processors together spent busy, idle, and taken away; None without /proc/stat."""
    found = re.match(r"cpu\s+([\d ]+)", _text(root / "proc/stat") or "")
    if not found:
        return None
    user, nice, system, idle, iowait, irq, softirq, steal = [int(n) for n in found[1].split()[:8]]
    per_s = os.sysconf("SC_CLK_TCK")
    busy = user + nice + system + irq + softirq
    return {"busy": busy / per_s, "idle": (idle + iowait) / per_s, "steal": steal / per_s}


def _busy_share(before: dict[str, float] | None, after: dict[str, float] | None) -> float | None:
    if before is None or after is None:
        return None
    spent = {name: after[name] - before[name] for name in before}
    total = sum(spent.values())
    return round(spent["busy"] / total, 3) if total > 0 else 0.0


def _power_mode() -> str | None:
    """The Jetson's power mode as `nvpmodel -q` names it."""
    found = re.search(r"NV Power Mode:\s*(\S+)", _tool("nvpmodel", "-q") or "")
    return found[1] if found else None


def _limit_mhz(root: Path) -> int | None:
    limits = [khz for core in _cores(root) if (khz := _number(core / "cpufreq/scaling_max_freq")) is not None]
    return round(max(limits) / 1000) if limits else None


def _boost(root: Path) -> bool | None:
    """Whether clocks above the nominal one are allowed."""
    cpu = root / "sys/devices/system/cpu"
    allowed, forbidden = _number(cpu / "cpufreq/boost"), _number(cpu / "intel_pstate/no_turbo")
    if allowed is not None:
        return bool(allowed)
    return None if forbidden is None else not forbidden


def _joined(root: Path, name: str) -> str | None:
    """A cpufreq setting of all cores, joined when they differ; None where the system shows none."""
    found = {text.strip() for core in _cores(root) if (text := _text(core / "cpufreq" / name)) is not None}
    return "+".join(sorted(found)) or None


def _cores(root: Path) -> list[Path]:
    return sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*"), key=lambda path: int(path.name[3:]))


def _table(path: Path) -> dict[str, str]:
    """`Key: value` lines."""
    lines = (line.partition(":") for line in (_text(path) or "").splitlines())
    return {key: value.strip() for key, _, value in lines}


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError:  # absent, unreadable, or a sensor that is switched off
        return None


def _number(path: Path) -> float | None:
    try:
        return float(_text(path) or "")
    except ValueError:
        return None


def _tool(*command: str) -> str | None:
    """What a vendor's tool prints; None where there is none or it fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TOOL_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
