"""How many processes this machine has room for."""

from __future__ import annotations

from pathlib import Path

from edgekd.targets.host import host_facts

_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cores(quota: Path = _QUOTA) -> int:
    """Physical cores that this process may use, no more than the CPU quota of its container gives it (cgroup v2)."""
    cores = host_facts().cores
    try:
        allowed, period = quota.read_text(encoding="utf-8").split()
    except OSError:
        return cores
    return cores if allowed == "max" else max(1, min(cores, int(allowed) // int(period)))
