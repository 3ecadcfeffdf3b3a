"""The process in which native code builds or runs one engine: what crashes, hangs or eats memory here ends alone.

Called as `... VERB PARENT ...`: `probe RESULT`, `build SPEC RESULT`, `run SPEC RESULT`, and `exec PROGRAM ...`, which
turns into the program. Specs and results are JSON files; a result is only there when the work was done, or when it
ended with a reason. Whoever started it is watched by the kernel: no work goes on without a parent. Standard library of
Python 3.10, and TensorRT in the modules named for it.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import signal
import sys
import time
from array import array
from pathlib import Path
from typing import Any

from edgekd.runtimes.engines.cuda import Cuda
from edgekd.runtimes.engines.device import device_here
from edgekd.runtimes.engines.settings import SettingsError, settings_from_plain, version_from_text
from edgekd.runtimes.engines.tensorrt_api import ApiError, build, library_version
from edgekd.runtimes.engines.tensorrt_run import DeviceEngine, EngineError, deserialized

PROGRESS = "edgekd-progress: "
"""Begins a line that tells of progress, before a JSON array of phase, step and number of steps."""
WARM_UP_S = 0.5
"""At most; a shorter measurement is warmed up for its own length."""
BURST = 10
FEWEST_TIMES = 20
_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """Carries out one verb; the exit code is 0 when the result was written."""
    verb, parent, *rest = arguments
    _die_with(int(parent))
    if verb == "exec":
        os.execv(rest[0], rest)
    result = Path(rest[-1])
    spec = {} if verb == "probe" else json.loads(Path(rest[0]).read_text(encoding="utf-8"))
    found = {"probe": _probe, "build": _build, "run": _run}[verb](spec)
    made = result.with_name(f".{result.name}.{os.getpid()}")
    made.write_text(json.dumps(found), encoding="utf-8")
    os.replace(made, result)
    sys.stdout.flush()
    os._exit(0)  # a library that crashes while it unloads has nothing left to spoil
    return 0


def _probe(spec: dict[str, Any]) -> dict[str, Any]:
    """What is here: `library` (version of the bindings or None), `device`, and why something is missing."""
    found: dict[str, Any] = {"library": None, "device": None, "memory_mib": None, "missing": []}
    try:
        found["library"] = library_version()
    except (ImportError, OSError) as err:  # OSError: the bindings are there, a native library is not
        found["missing"].append(f"Python has no TensorRT ({err})")
    try:
        cuda = Cuda()
        found["device"] = dataclasses.asdict(device_here(found["library"] or "", cuda=cuda))
        found["memory_mib"] = cuda.memory_mib()[1]
    except OSError as err:
        found["missing"].append(f"no GPU that CUDA can use ({err})")
    return found


def _build(spec: dict[str, Any]) -> dict[str, Any]:
    """`flags` and `notes`, or the `error` and whether `memory` was short."""
    settings = settings_from_plain(spec["settings"])
    try:
        made = build(
            settings,
            version_from_text(library_version()),
            onnx=Path(spec["onnx"]),
            engine=Path(spec["engine"]),
            timing_cache=Path(spec["timing_cache"]) if spec["timing_cache"] else None,
            layers=Path(spec["layers"]),
            on_progress=_tell,
        )
    except (ApiError, SettingsError) as err:
        return {"error": str(err), "memory": isinstance(err, ApiError) and err.memory}
    return {"flags": made.flags, "notes": made.notes}


def _run(spec: dict[str, Any]) -> dict[str, Any]:
    """`outputs` of each probe by name, and `times_ms` on the device; or the `error`."""
    probes = [{name: _values(path) for name, path in probe.items()} for probe in spec["probes"]]
    feeds = {name: (spec["shapes"][name], values) for name, values in probes[0].items()}
    try:
        trt, engine = deserialized(Path(spec["engine"]).read_bytes(), host_code=spec["host_code"])
        loaded = DeviceEngine(trt, engine, Cuda(), feeds)
        outputs = []
        for probe in probes:
            for name, values in probe.items():
                loaded.feed(name, values)
            loaded.run()
            outputs.append(dict(zip(loaded.output_names, loaded.outputs(), strict=True)))
        return {"outputs": outputs, "times_ms": _times_ms(loaded, float(spec["seconds"]))}
    except (EngineError, OSError, RuntimeError) as err:
        return {"error": str(err)}


def _times_ms(engine: DeviceEngine, seconds: float) -> list[float]:
    """Times of inferences on the device after a warm-up."""
    end = time.monotonic() + min(WARM_UP_S, seconds)
    while time.monotonic() < end:
        engine.run()
    found: list[int] = []
    end = time.monotonic() + seconds
    while len(found) < FEWEST_TIMES or time.monotonic() < end:
        found += engine.device_ns(BURST)
    return [value / 1e6 for value in found]


def _values(path: str) -> array[float]:
    values = array("f")
    values.frombytes(Path(path).read_bytes())
    return values


def _tell(phase: str, done: int, total: int) -> None:
    os.write(1, (PROGRESS + json.dumps([phase, done, total]) + "\n").encode())


def _die_with(parent: int) -> None:
    """Asks the kernel to end this process, and the program it turns into, with whoever started it."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, AttributeError):
        return  # no Linux
    if os.getppid() != parent:  # it was gone before we asked
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
