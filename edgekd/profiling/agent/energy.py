"""Energy of an inference, where the board has a meter for it: Intel and AMD RAPL, Jetson and other INA3221 rails.

RAPL counts microjoules, so two readings around a stretch of calls give its energy. INA3221 tells volts and amperes of
the moment, which a thread samples and integrates. Without a readable meter there is no energy: it is never estimated
from power limits or data sheets. What is read is the whole package or board, idle share included; the idle power is
measured beside it.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

ROOT = Path("/")
TOTAL_RAILS = ("VDD_IN", "POM_5V_IN")
"""INA3221 rails that carry a whole Jetson, the others being parts of it."""
IDLE_S = 0.5


class Meter(Protocol):
    """Something that counts energy from the moment it is started."""

    @property
    def source(self) -> str:
        """The meter, in words."""

    def start(self) -> None:
        """Counts from here."""

    def stop(self) -> float:
        """Joules since the start."""


@dataclass(frozen=True, kw_only=True)
class Energy:
    """What a stretch of calls took.

    Attributes:
        source: The meter, in words.
        per_call_mj: Millijoules for each call, idle share included.
        mean_w: Power while calling.
        idle_w: Power just before, with the engine loaded and waiting.
        calls: Made in the stretch.
        took_s: Length of the stretch.
    """

    source: str
    per_call_mj: float
    mean_w: float
    idle_w: float
    calls: int
    took_s: float


def meter_here(root: Path = ROOT) -> Meter | None:
    """The first meter that can be read here, the rails of a board before the package of a processor."""
    rails = _total_rails(root)
    if rails:
        return RailMeter(rails)
    packages = [zone for zone in _zones(root) if _read(zone / "energy_uj") is not None]
    return RaplMeter(packages) if packages else None


def why_no_meter(root: Path = ROOT) -> str:
    """A clause on why `meter_here` finds none."""
    if _zones(root):
        return "the RAPL counters are there but only root may read them"
    return "this machine shows neither RAPL counters nor INA3221 rails"


def energy_of_calls(
    call_for: Callable[[float], int],
    meter: Meter,
    seconds: float,
    *,
    clock_s: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Energy:
    """Energy of calling without pause for `seconds`, after a short idle stretch for comparison.

    Args:
        call_for: Calls for so many seconds and returns how often.
    """
    start = clock_s()
    meter.start()
    sleep(IDLE_S)
    idle_w = meter.stop() / max(clock_s() - start, 1e-9)
    start = clock_s()
    meter.start()
    calls = call_for(seconds)
    joules, took_s = meter.stop(), clock_s() - start
    return Energy(
        source=meter.source,
        per_call_mj=1000 * joules / calls,
        mean_w=joules / max(took_s, 1e-9),
        idle_w=idle_w,
        calls=calls,
        took_s=took_s,
    )


class RaplMeter:
    """Running average power limit counters of whole processor packages, by the kernel's powercap files."""

    def __init__(self, packages: list[Path]) -> None:
        self._packages = packages
        self._before: dict[Path, float] = {}

    @property
    def source(self) -> str:
        return f"RAPL, {', '.join((_text(zone / 'name') or zone.name) for zone in self._packages)}"

    def start(self) -> None:
        self._before = {zone: _read(zone / "energy_uj") or 0.0 for zone in self._packages}

    def stop(self) -> float:
        return sum(self._used_uj(zone) for zone in self._packages) / 1e6

    def _used_uj(self, zone: Path) -> float:
        used = (_read(zone / "energy_uj") or 0.0) - self._before[zone]
        # The counter starts again at zero after its range: minutes at full power, so at most once in a stretch.
        return used if used >= 0 else used + (_read(zone / "max_energy_range_uj") or 0.0)


@dataclass(kw_only=True)
class Rail:
    """One channel of an INA3221.

    Attributes:
        name: Its label.
        volts: File of millivolts.
        amperes: File of milliamperes.
    """

    name: str
    volts: Path
    amperes: Path

    def power_w(self) -> float:
        return (_read(self.volts) or 0.0) * (_read(self.amperes) or 0.0) / 1e6


@dataclass
class RailMeter:
    """Integrates the power of rails by the trapezoidal rule, in a thread of its own.

    Attributes:
        rails: Whose powers are added.
        every_s: Time between readings; the converters of a Jetson are read over I2C and need about a millisecond.
        readings: (seconds, watts) since the start.
    """

    rails: list[Rail]
    every_s: float = 0.02
    readings: list[tuple[float, float]] = field(default_factory=list)
    _done: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    @property
    def source(self) -> str:
        return f"INA3221, {', '.join(rail.name for rail in self.rails)}"

    def start(self) -> None:
        self.readings, self._done = [], threading.Event()
        self._read()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        self._done.set()
        if self._thread is not None:
            self._thread.join()
        self._read()
        return joules_of_readings(self.readings)

    def _watch(self) -> None:
        while not self._done.wait(self.every_s):
            self._read()

    def _read(self) -> None:
        self.readings.append((time.monotonic(), sum(rail.power_w() for rail in self.rails)))


def joules_of_readings(readings: Sequence[tuple[float, float]]) -> float:
    """The integral of (seconds, watts) readings by the trapezoidal rule."""
    pairs = itertools.pairwise(readings)
    return sum((before + power) / 2 * (now - then) for (then, before), (now, power) in pairs)


def _total_rails(root: Path) -> list[Rail]:
    """The rail of the whole board where one is known by name; else none, since parts might overlap."""
    for folder in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if not (_text(folder / "name") or "").startswith("ina3221"):
            continue
        for label in sorted(folder.glob("in*_label")):
            number = label.name[2:-6]
            rail = Rail(
                name=_text(label) or label.name,
                volts=folder / f"in{number}_input",
                amperes=folder / f"curr{number}_input",
            )
            if rail.name in TOTAL_RAILS and _read(rail.volts) is not None and _read(rail.amperes) is not None:
                return [rail]
    return []


def _zones(root: Path) -> list[Path]:
    """Top-level RAPL zones, one for each package; their parts are nested deeper and would count twice."""
    found = sorted((root / "sys/class/powercap").glob("intel-rapl:*"))
    return [zone for zone in found if (_text(zone / "name") or "").startswith("package")]


def _read(path: Path) -> float | None:
    try:
        return float(_text(path) or "")
    except ValueError:
        return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
