"""What the agent asks of a runtime, and which runtimes it knows; the twin of `edgekd/runtimes/` for a bare board.

Whether a runtime is there is found out without importing it. Standard library of Python 3.10 only; an adapter imports
its own library, and NumPy where that library needs it anyway, inside functions.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import random
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from edgekd.profiling.agent.wire import AgentError

NO_RUNTIME = "no-runtime"
NOT_LOADED = "not-loaded"
AGAIN = "convert the model again with the version of its runtime that the board has, or install the other one there"
"""What to do about a file that does not load: formats of engines change between versions."""
ADAPTERS = {
    "onnxruntime": "edgekd.profiling.agent.onnxruntime",
    "tensorrt": "edgekd.profiling.agent.tensorrt",
    "openvino": "edgekd.profiling.agent.openvino",
    "executorch": "edgekd.profiling.agent.executorch",
    "ncnn": "edgekd.profiling.agent.ncnn",
    "litert": "edgekd.profiling.agent.litert",
}
INSTALL = {
    "onnxruntime": "{python} -m pip install onnxruntime",
    "tensorrt": "sudo apt-get install python3-libnvinfer",
    "openvino": "{python} -m pip install openvino",
    "executorch": "{python} -m pip install executorch",
    "ncnn": "{python} -m pip install ncnn",
    "litert": "{python} -m pip install ai-edge-litert",
}
PACKAGES = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"),
    "litert": ("ai-edge-litert",),
}
"""Distributions that a runtime may come from, where they are not called as it is."""
MODULES = {"litert": "ai_edge_litert"}
"""What is imported, where it is not called as the runtime is."""


class Engine(Protocol):
    """A model that is loaded and fed; one call of `run` is what gets timed."""

    def run(self) -> None:
        """One inference with host arrays: inputs copied in, run, outputs back on the host."""

    def outputs(self) -> list[list[float]]:
        """Values of each output of the last `run`, flat."""

    def device_ns(self, calls: int) -> list[int] | None:
        """Nanoseconds that each of `calls` inferences took on the device alone; None where it has no clock of its own.

        Copies to and from the device, and the host's part, are not in it.
        """

    def layers(self, calls: int) -> dict[str, Any] | None:
        """What the runtime tells of its layers over so many calls, in its own words; None where it does not.

        The engine runs slower afterwards: nothing is timed after this.
        """

    def facts(self) -> dict[str, Any]:
        """What really runs: `runtime`, `version`, `provider`, `threads` and the settings that affect latency.

        `load_ms` is the time from the model's file to an engine that is ready: importing the library, making the inputs
        and building an engine from a graph are not in it.
        """

    def close(self) -> None:
        """Frees the model."""


def availability(python: str) -> dict[str, dict[str, Any]]:
    """By runtime: `ok`, `version`, and where it is missing the command that installs it."""
    found = {}
    for name in ADAPTERS:
        there = importlib.util.find_spec(MODULES.get(name, name)) is not None
        found[name] = {
            "ok": there,
            "version": version_of(name) if there else None,
            "install": "" if there else INSTALL[name].format(python=python),
        }
    return found


def open_engine(spec: dict[str, Any], paths: Sequence[Path], cache: Path) -> Engine:
    """The engine of one entry of a job.

    Args:
        spec: See `bench.py`.
        paths: The model's files, first the one that the runtime opens.
        cache: Where built engines are kept.

    Raises:
        AgentError: The runtime is not there, or cannot load the model; the message says which.
    """
    name = str(spec["runtime"])
    if name not in ADAPTERS:
        raise AgentError(NO_RUNTIME, f"the agent knows no runtime {name!r}, only {', '.join(ADAPTERS)}")
    adapter = importlib.import_module(ADAPTERS[name])
    try:
        engine: Engine = adapter.opened(spec, paths, cache)
    except (ImportError, OSError) as err:  # OSError: the bindings are there, a native library is not
        raise AgentError(NO_RUNTIME, f"{name} does not work on the board: {err}") from err
    return engine


def input_values(shape: list[int], seed: int) -> array[float]:
    """Ordinary numbers, equal for equal seeds on every machine: zeros would let a runtime skip work."""
    rng, count = random.Random(seed), 1
    for size in shape:
        count *= size
    return array("f", (rng.gauss(0.0, 1.0) for _ in range(count)))


def input_shape(entry: dict[str, Any], batch: int) -> list[int]:
    """Sizes of an input whose free axes are the batch."""
    return [size if isinstance(size, int) else batch for size in entry["shape"]]


def version_of(name: str) -> str:
    """Of a runtime that is installed, without importing it."""
    for package in PACKAGES.get(name, (name,)):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"
