"""Has engines of one graph built and run in processes of their own, and survives what they do.

Short of memory, a build is tried again with half the scratch memory. Builds are not deterministic: several are made
when asked for, and each comes back with its time and its outputs for whoever chooses. Nothing is chosen here. Standard
library of Python 3.10 only: a board runs the same lines.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekd.core.stats import quantile
from edgekd.runtimes.engines.builders import (
    ENGINE,
    LAYERS,
    TIMING_CACHE,
    Builder,
    BuildTools,
    Built,
    NotBuilt,
    builders,
)
from edgekd.runtimes.engines.process import run_to_end
from edgekd.runtimes.engines.settings import BuildSettings, SettingsError, check
from edgekd.runtimes.fingerprint import Device, sha256_of

NO_DEVICE, FAILED, TIME_LIMIT, CANCELLED = "no-device", "build-failed", "time-limit", "cancelled"
NOT_THIS_VERSION = "not-this-version"
LEAST_WORKSPACE_MIB = 16
MOST_ATTEMPTS = 4
PROBE_S = 120.0
RUN_LIMIT_S = 300.0


class BuildError(Exception):
    """No engine was made.

    Args:
        code: One of the constants above.
        message: A clause that says why.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Order:
    """What is to be built from one graph.

    Attributes:
        onnx: The graph.
        settings: The engine.
        shapes: Shape of each input while the engine is run.
        probes: Files of raw float32 values, by input name; each probe is run once.
        builder: `auto`, `python` or `trtexec`.
        builds: How many engines.
        limit_s: Seconds for one build.
        timing_cache: Timings of earlier builds; None without.
        timing_cache_from: GPU, compute capability and TensorRT version that they were taken on, where that is known.
        run_s: Seconds to time each engine.
    """

    onnx: Path
    settings: BuildSettings
    shapes: Mapping[str, Sequence[int]]
    probes: Sequence[Mapping[str, Path]]
    builder: str = "auto"
    builds: int = 1
    limit_s: float = 1800.0
    timing_cache: Path | None = None
    timing_cache_from: Mapping[str, str] | None = None
    run_s: float = 2.0


@dataclass
class Supervisor:
    """Carries out an order.

    Attributes:
        order: What to build.
        folder: Takes the engines, one sub-folder each; exists.
        worker: Command that runs `edgekd.runtimes.engines.work`.
        tell: Told of what is done now, the part of it that is done and the whole; (text, 0, 0) where nobody knows.
        stop: Asked now and then whether to end.
        environment: Added to this process's own for what is started.
        clock_s: Monotonic seconds.
    """

    order: Order
    folder: Path
    worker: Sequence[str]
    tell: Callable[[str, int, int], None] = lambda text, done, total: None
    stop: Callable[[], bool] = lambda: False
    environment: Mapping[str, str] = field(default_factory=dict)
    clock_s: Callable[[], float] = time.monotonic
    notes: list[str] = field(default_factory=list)

    def result(self) -> dict[str, Any]:
        """Everything that was made and found, as plain data; files by their path within the folder.

        Raises:
            BuildError: No builder or no GPU here, or not one engine could be built.
        """
        found = self._probe()
        tools = BuildTools(self.worker, self.order.limit_s, self.stop, self.environment, self.clock_s, self.tell)
        chosen, version = builders(self.order.builder, found, tools, self._no_device)
        device = Device(**{**found["device"], "tensorrt": version})
        try:
            check(self.order.settings, chosen.version)
        except SettingsError as err:
            raise BuildError(NOT_THIS_VERSION, str(err)) from err
        cache = self._usable_cache(device, chosen.name)
        builds = []
        for number in range(self.order.builds):
            # A build that is told all timings chooses the same kernels again: only the first one is told.
            builds.append(self._one(chosen, number, cache if number == 0 else None, found["memory_mib"]))
        if all(build["engine"] is None for build in builds):
            raise BuildError(builds[0]["code"], builds[0]["failure"])
        return {
            "builder": chosen.name,
            "program": chosen.program,
            "device": vars(device),
            "builds": builds,
            "notes": self.notes,
        }

    def _probe(self) -> dict[str, Any]:
        place = self.folder / "probe.json"
        ended = run_to_end(
            [*self.worker, "probe", str(os.getpid()), str(place)], limit_s=PROBE_S, environment=self.environment
        )
        try:
            found: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            said = " | ".join(line.strip() for line in ended.output.splitlines()[-3:])
            return {"library": None, "device": None, "memory_mib": None, "missing": [f"looking {ended.death}: {said}"]}
        return found

    def _note(self, text: str) -> None:
        """Keeps a note for the result, and tells it now: what it explains may take minutes."""
        if text not in self.notes:
            self.notes.append(text)
            self.tell(text, 0, 0)

    def _no_device(self, reasons: Sequence[str]) -> BuildError:
        return BuildError(NO_DEVICE, "; ".join(reasons))

    def _usable_cache(self, device: Device, builder: str) -> Path | None:
        """The timing cache where it can be of use; that of another device would choose kernels by wrong numbers."""
        order = self.order
        if order.timing_cache is None:
            return None
        origin = order.timing_cache_from
        if origin is not None and _identity(origin) != _identity(vars(device)):
            there = f"{origin.get('gpu')} with TensorRT {origin.get('tensorrt')}"
            self._note(f"the timing cache is of another device ({there}): it is ignored")
            return None
        # The program takes caches of other GPUs without a word; the Python API looks and refuses.
        if origin is None and builder == "trtexec":
            self._note("nothing says which device the timing cache is of, and trtexec does not ask: it is ignored")
            return None
        return order.timing_cache

    def _one(self, builder: Builder, number: int, cache: Path | None, memory_mib: int | None) -> dict[str, Any]:
        """One engine, built and run; where that failed, the reason in its place."""
        place = self.folder / f"build-{number}"
        which = f"build {number + 1} of {self.order.builds}"
        try:
            made, settings = self._built(builder, place, cache, memory_mib, which)
        except NotBuilt as err:
            if err.stopped:
                raise BuildError(CANCELLED, "the build was cancelled") from err
            shutil.rmtree(place, ignore_errors=True)
            code = TIME_LIMIT if err.timed_out else FAILED
            return {"engine": None, "code": code, "failure": str(err)}
        for note in made.notes:
            self._note(note)
        self.tell(f"run {which}", 0, 0)
        ran = builder.run(place, self.order, RUN_LIMIT_S)
        times = ran.get("times_ms") or []
        return {
            **self._files(place),
            "workspace_mib": settings.workspace_mib,
            "build_s": made.seconds,
            "peak_gpu_mib": made.peak_gpu_mib,
            "flags": made.flags,
            "outputs": ran.get("outputs", []),
            "median_ms": quantile(times, 0.5) if times else ran.get("median_ms"),
            "p99_ms": quantile(times, 0.99) if times else ran.get("p99_ms"),
            "failure": f"it was built and does not run: {ran['error']}" if "error" in ran else None,
        }

    def _built(
        self, builder: Builder, place: Path, cache: Path | None, memory_mib: int | None, which: str
    ) -> tuple[Built, BuildSettings]:
        """An engine in `place`, and the settings that it was possible with."""
        settings = self.order.settings
        for attempt in range(MOST_ATTEMPTS):
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            if cache is not None:
                shutil.copyfile(cache, place / TIMING_CACHE)  # what it was read from stays as it is
            self.tell(which, 0, 0)
            try:
                return builder.build(place, self.order.onnx, settings), settings
            except NotBuilt as err:
                smaller = _smaller(settings.workspace_mib, memory_mib)
                last = attempt == MOST_ATTEMPTS - 1 or err.timed_out or err.stopped
                if err.cache and cache is not None and not last:
                    self._note("the timing cache is damaged: it is ignored")
                    cache = None
                elif err.memory and smaller is not None and not last:
                    self._note(f"memory was short ({err}): tried again with {smaller} MiB of scratch memory")
                    settings = settings.with_workspace(smaller)
                else:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _files(self, place: Path) -> dict[str, Any]:
        """Where the files of a build are, and their digests."""
        found: dict[str, Any] = {}
        for key, name in (("engine", ENGINE), ("timing_cache", TIMING_CACHE), ("layers", LAYERS)):
            there = (place / name).is_file()
            found[key] = f"{place.name}/{name}" if there else None
            found[f"{key}_sha256"] = sha256_of(place / name) if there else None
        return found


def _identity(facts: Mapping[str, Any]) -> tuple[str, str, list[str]]:
    """What timings depend on. Of a version the first three numbers: the program tells no more, the bindings do."""
    version = str(facts.get("tensorrt")).split(".")[:3]
    return str(facts.get("gpu")), str(facts.get("compute_capability")), version


def _smaller(workspace_mib: int | None, memory_mib: int | None) -> int | None:
    """Half the scratch memory; from TensorRT's own choice, all of the device, a quarter; None at the end."""
    if workspace_mib is None:
        return None if memory_mib is None else max(LEAST_WORKSPACE_MIB, memory_mib // 4)
    return workspace_mib // 2 if workspace_mib // 2 >= LEAST_WORKSPACE_MIB else None
