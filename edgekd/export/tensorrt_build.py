"""From an ONNX bundle to a TensorRT engine with its fingerprint: the order, the build on this machine, and the result.

A build on a board gives the same plain result (`edgekd/profiling/remote/build.py`), which ends here as well.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import edgekd
from edgekd.core.bundle import ModelBundle
from edgekd.core.digest import file_digest
from edgekd.core.events import Reporter
from edgekd.errors import BuildFailed, DeviceUnavailable, EdgekdError
from edgekd.export.tensorrt import BuildConfig, run_shape, settings_for
from edgekd.export.tensorrt_choice import chosen_build, reference_outputs, tolerance_for
from edgekd.runtimes.engines.settings import BuildSettings
from edgekd.runtimes.engines.supervise import (
    CANCELLED,
    NO_DEVICE,
    NOT_THIS_VERSION,
    TIME_LIMIT,
    BuildError,
    Order,
    Supervisor,
)
from edgekd.runtimes.fingerprint import Device, Fingerprint
from edgekd.runtimes.onnx_file import graph_from_file, size_mib
from edgekd.runtimes.samples import random_images
from edgekd.runtimes.session import FloatArray
from edgekd.targets.schema import Target

WORKER = (sys.executable, "-P", "-m", "edgekd.runtimes.engines.work")  # -P: no module of the user's folder is taken
INSTALL = (
    "on a Jetson use the TensorRT that JetPack installed; elsewhere pip install 'edgekd[tensorrt]', or put trtexec on "
    "the PATH"
)


class VersionCannot(BuildFailed):
    """The TensorRT that is there does not do what the settings or the graph ask for; others may be built."""


@dataclass(frozen=True, kw_only=True)
class TimingCache:
    """Timings of earlier builds.

    Attributes:
        path: The file.
        origin: `gpu`, `compute_capability` and `tensorrt` that they were taken on; None where nobody knows.
    """

    path: Path
    origin: Mapping[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class BuildTask:
    """One graph that becomes an engine.

    Attributes:
        model: ONNX.
        graph: Its file.
        config: How.
        images: (N, C, H, W) float32 that parity is judged on.
        target: Limits the workspace; None does not.
        cache: Timings of earlier builds.
    """

    model: ModelBundle
    graph: Path
    config: BuildConfig
    images: FloatArray
    target: Target | None = None
    cache: TimingCache | None = None

    @property
    def settings(self) -> BuildSettings:
        """The engine; see `settings_for`."""
        return settings_for(self.model, self.config, self.target)

    def order(self, folder: Path) -> Order:
        """What the supervisor is told; the images are written into `folder`."""
        (spec,) = self.model.inputs
        probes = []
        for number, image in enumerate(self.images):
            path = folder / f"probe-{number}.bin"
            path.write_bytes(image.tobytes())
            probes.append({spec.name: path})
        return Order(
            onnx=self.graph,
            settings=self.settings,
            shapes={spec.name: run_shape(spec)},
            probes=probes,
            builder=self.config.builder,
            builds=self.config.builds,
            limit_s=self.config.time_limit_s,
            run_s=self.config.duration_s,
            timing_cache=None if self.cache is None else self.cache.path,
            timing_cache_from=None if self.cache is None else self.cache.origin,
        )


@dataclass(frozen=True, kw_only=True)
class MadeEngine:
    """An engine that passed parity.

    Attributes:
        files: Path by what it is: `engine`, `timing_cache`, `layers`; the last two only where there are any.
        fingerprint: Of the engine.
        device: Where it was built.
        median_ms: GPU compute time of one image, without copies; None where it was not timed.
        build_s: How long the build took.
        size_mib: Of the engine.
        decisions: What was chosen, ignored or tried again, in sentences.
    """

    files: Mapping[str, Path]
    fingerprint: Fingerprint
    device: Device
    median_ms: float | None
    build_s: float
    size_mib: float
    decisions: tuple[str, ...]


def probe_images(model: ModelBundle, config: BuildConfig, seed: int) -> FloatArray:
    """Noise in the form of the model's input: the same for equal seeds."""
    (spec,) = model.inputs
    _, channels, height, width = run_shape(spec)
    return random_images((channels, height, width), samples=config.probes, seed=seed)


def built_here(
    task: BuildTask, folder: Path, reporter: Reporter, *, stop: Callable[[], bool] = lambda: False
) -> MadeEngine:
    """The engine of a graph, built on this machine's GPU.

    Args:
        task: What to build.
        folder: Takes everything that is written; the engine's files stay there.
        reporter: Told of progress.
        stop: Asked now and then whether to end.

    Raises:
        DeviceUnavailable: There is no GPU or no builder here.
        BuildFailed: TensorRT refused, crashed, hung or ran out of memory, or no engine passes parity.
    """
    environment = {"PYTHONPATH": _python_path()}
    supervisor = Supervisor(
        task.order(folder), folder, WORKER, tell=_Progress(reporter), stop=stop, environment=environment
    )
    try:
        result = supervisor.result()
    except BuildError as err:
        raise build_error(err.code, str(err), task) from err
    return made_engine(task, result, lambda build, key: folder / str(build[key]))


def made_engine(
    task: BuildTask, result: Mapping[str, Any], file: Callable[[Mapping[str, Any], str], Path]
) -> MadeEngine:
    """The chosen engine of a result.

    Args:
        task: What was to be built.
        result: See `Supervisor.result`.
        file: Fetches a file of a build by its key.

    Raises:
        BuildFailed: No engine passes parity, or a file arrived damaged.
    """
    tolerance = tolerance_for(task.settings.precision, task.config.atol, task.config.rtol)
    choice = chosen_build(result["builds"], reference_outputs(task.graph, task.images), tolerance, task.model)
    build = result["builds"][choice.number]
    files = {key: file(build, key) for key in ("engine", "timing_cache", "layers") if build[key] is not None}
    device = Device(**result["device"])
    digest = file_digest(files["engine"])
    if digest != build["engine_sha256"]:
        raise BuildFailed(f"The engine arrived damaged: its SHA-256 is {digest[:12]}..., it was built with another.")
    settings = task.settings
    used = build["workspace_mib"]
    if used is not None:
        settings = settings.with_workspace(used)
    fingerprint = Fingerprint(
        **vars(device),
        onnx_sha256=file_digest(task.graph),
        engine_sha256=digest,
        builder=result["builder"],
        flags=tuple(build["flags"]),
        settings={**settings.plain(), "builds": task.config.builds},
        timing_cache_sha256=build["timing_cache_sha256"],
        version_compatible=settings.version_compatible,
        hardware_compatible=settings.hardware_compatible,
    )
    notes = tuple(f"{note[0].upper()}{note[1:]}." for note in result["notes"])
    return MadeEngine(
        files=files,
        fingerprint=fingerprint,
        device=device,
        median_ms=build["median_ms"],
        build_s=float(build["build_s"]),
        size_mib=size_mib(files["engine"]),
        decisions=(*notes, *choice.decisions),
    )


def build_error(code: str, message: str, task: BuildTask) -> EdgekdError:
    """The error for a build that gave no engine."""
    name = f"{task.settings.precision.upper()} engine"
    if code == NO_DEVICE:
        return DeviceUnavailable(f"An engine can only be built on the device it is for: {message}.", hint=INSTALL)
    if code == TIME_LIMIT:
        return BuildFailed(
            f"The {name} was not built: {message}. Nothing of it is kept.",
            hint="give it more time with --time-limit-s, or a lower --optimization-level",
        )
    if code == NOT_THIS_VERSION:
        return VersionCannot(f"The {name} was not built: {message}.")
    if code == CANCELLED:
        return BuildFailed(f"The {name} was not built: {message}. Nothing of it is kept.")
    hints = {
        "cannot take": f"the graph has opset {_opset(task.graph)}: export it with another --opset, or run it with "
        "onnxruntime, which takes every operator that edgekd exports",
        "memory": "close what else uses the GPU, or give --workspace-mib a smaller value",
        "killed": "close what else uses memory, or give --workspace-mib a smaller value",
        "implementation": "give --workspace-mib a larger value: no kernel fits into the scratch memory",
    }
    hint = next((text for word, text in hints.items() if word in message), "run with -v for the builder's own words")
    return BuildFailed(f"The {name} was not built: {message}".rstrip(".") + ". Nothing of it is kept.", hint=hint)


def _opset(graph: Path) -> str:
    """Of the ONNX domain, for messages."""
    found = [entry.version for entry in graph_from_file(graph).opset_import if entry.domain in ("", "ai.onnx")]
    return str(found[0]) if found else "unknown"


class _Progress:
    """Turns what a supervisor tells into a reporter's events."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def __call__(self, text: str, done: int, total: int) -> None:
        if total > 0:
            self._reporter.progress(f"TensorRT: {text}", done, total)
        else:
            self._reporter.message(f"• TensorRT: {text}")


def _python_path() -> str:
    """The folder of this package first, so that the worker runs the same code."""
    here = str(Path(edgekd.__file__).parent.parent)
    return os.pathsep.join(path for path in (here, os.environ.get("PYTHONPATH", "")) if path)
