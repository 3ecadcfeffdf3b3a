"""Facts about this machine, and what they add to the card of the target that it is.

Reads the processor's name, cores, memory and instruction sets through `platform`, `psutil` and files of the kernel.
Nothing is timed here: peaks are computed from clock, cores and vector width, and the target says that they are.
"""

from __future__ import annotations

import platform
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil

from edgekd.targets.schema import Precision, Target

_FEATURES = (
    "avx2",
    "fma",
    "avx512f",
    "avx_vnni",
    "avx512_vnni",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "asimdhp",
    "i8mm",
    "sve",
)
_ASSUMED_GHZ = 2.5


@dataclass(frozen=True, kw_only=True)
class HostFacts:
    """This machine.

    Attributes:
        machine: `x86_64`, `aarch64`, ...
        board: Model of the device tree, empty where there is none.
        cpu_model: The processor's name.
        cores: Physical cores that the process may use.
        memory_mib: Installed memory.
        features: Instruction sets that matter to inference, as the kernel names them.
        clock_ghz: Nominal clock, None when the machine does not say. Never the momentary one: facts must not change
            from call to call.
        root: Where the files that cards look for are sought.
        path: Folders where their programs are sought, as PATH lists them; None takes PATH itself.
    """

    machine: str
    board: str = ""
    cpu_model: str = "unknown processor"
    cores: int = 1
    memory_mib: int = 1024
    features: tuple[str, ...] = ()
    clock_ghz: float | None = None
    root: Path = Path("/")
    path: str | None = None


def host_facts() -> HostFacts:
    """What this machine says about itself; the same at every call."""
    cpuinfo = _text(Path("/proc/cpuinfo"))
    flags = set(_field(cpuinfo, "flags").split()) | set(_field(cpuinfo, "Features").split())
    model = _field(cpuinfo, "model name") or platform.processor() or platform.machine()
    allowed = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else psutil.cpu_count()
    physical = psutil.cpu_count(logical=False) or 1
    return HostFacts(
        machine=platform.machine().lower().replace("amd64", "x86_64").replace("arm64", "aarch64"),
        board=_text(Path("/proc/device-tree/model")).strip("\0 \n"),
        cpu_model=model,
        cores=max(1, min(physical, allowed or physical)),
        memory_mib=psutil.virtual_memory().total >> 20,
        features=tuple(name for name in _FEATURES if name in flags),
        clock_ghz=_nominal_ghz(model),
    )


def is_host(target: Target, here: HostFacts) -> bool:
    """Whether this machine is the target: every fact that its card names holds, and it names at least one."""
    presence = target.presence
    checks = []
    if presence.machine is not None:
        checks.append(presence.machine == here.machine)
    if presence.model is not None:
        checks.append(presence.model.lower() in here.board.lower())
    if presence.file is not None:
        checks.append((here.root / presence.file.lstrip("/")).exists())
    if presence.program:
        checks.append(any(shutil.which(name, path=here.path) for name in presence.program))
    return bool(checks) and all(checks)


def completed(target: Target, here: HostFacts) -> Target:
    """The target marked as being here, with this machine's facts in place of a CPU card's general ones.

    A card that names a board knows its device better than `/proc` does, so only the mark is set there; so it is for
    GPUs, whose drivers the runtimes ask, and for the web, which this machine only stands in for.
    """
    if target.kind != "cpu" or target.presence.model is not None:
        return target.model_copy(update={"measured_here": True})
    clock = here.clock_ghz or _ASSUMED_GHZ
    said = "its name or kernel" if here.clock_ghz else "an assumption, as the machine does not say"
    rates = estimated_gmacs_per_s(here.features, here.cores, clock)
    peak = target.peak.model_copy(
        update={
            "gmacs_per_s": rates,
            "relative_error": None,
            "sources": (
                *target.peak.sources,
                f"gmacs_per_s of this machine: estimated as {here.cores} cores x {clock:g} GHz (clock: {said}) x "
                "vector width; the other rates are the card's",
            ),
        }
    )
    return target.model_copy(
        update={
            "measured_here": True,
            "description": f"{here.cpu_model}, {here.cores} cores, {', '.join(here.features) or here.machine}",
            "memory_mib": here.memory_mib,
            "threads": tuple(sorted({1, here.cores})),
            "features": here.features,
            "peak": peak,
        }
    )


def estimated_gmacs_per_s(features: tuple[str, ...], cores: int, clock_ghz: float) -> dict[Precision, float]:
    """Peak rates from vector width: two FMA pipes per core, and the int8 instructions that the core has.

    Without a dot-product instruction INT8 gains about 1.3 times over FP32 on x86 (three instructions per product) and
    on Arm; with one, 4 times. A simplification: clocks under load and single-pipe cores are not known here.
    """
    lanes = 16 if "avx512f" in features else 8 if "avx2" in features else 4
    fp32 = cores * clock_ghz * 2 * lanes
    dot = {"avx512_vnni", "avx_vnni", "asimddp"} & set(features)
    return {"fp32": round(fp32, 1), "int8": round(fp32 * (4.0 if dot else 1.3), 1)}


def _nominal_ghz(model: str) -> float | None:
    named = re.search(r"@\s*([0-9.]+)\s*GHz", model)
    if named:
        return float(named[1])
    frequency = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
    return round(frequency.max / 1000, 2) if frequency is not None and frequency.max else None


def _text(path: Path) -> str:
    """A kernel file's text; empty where the system has none, which is an ordinary answer."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _field(text: str, name: str) -> str:
    found = re.search(rf"^{re.escape(name)}\s*:\s*(.*)$", text, flags=re.MULTILINE)
    return found[1].strip() if found else ""
