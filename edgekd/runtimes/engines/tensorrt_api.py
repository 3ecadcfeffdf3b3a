"""Builds an engine with TensorRT's Python API: the same settings in the calls of each version.

Every name that is used here is in all of 8.6 to 11, or is asked for first (`hasattr`, `getattr`); a test reads this
file and holds it to the names of the published bindings. Standard library of Python 3.10, and TensorRT in functions.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekd.runtimes.engines.settings import BuildSettings, Version, check, permissions, strongly_typed

BYTES_PER_MIB = 1 << 20
OUT_OF_MEMORY = ("OutOfMemory", "out of memory", "insufficient memory", "could not be allocated")


class ApiError(Exception):
    """TensorRT cannot read the graph or build it.

    Args:
        message: Its reason.
        memory: Whether memory was too short.
    """

    def __init__(self, message: str, *, memory: bool = False) -> None:
        super().__init__(message)
        self.memory = memory


@dataclass
class ApiBuild:
    """What a build made beside the engine's file.

    Attributes:
        flags: Names of the flags that were set.
        notes: What was left out or ignored, in sentences.
    """

    flags: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def library_version() -> str:
    """Version of the bindings.

    Raises:
        ImportError: They are not installed.
        OSError: They are, and a native library is missing.
    """
    import tensorrt

    return str(tensorrt.__version__)


def build(
    settings: BuildSettings,
    version: Version,
    *,
    onnx: Path,
    engine: Path,
    timing_cache: Path | None,
    layers: Path | None,
    on_progress: Callable[[str, int, int], None],
) -> ApiBuild:
    """Writes an engine for the current GPU, the timing cache, and what the engine is made of.

    Args:
        settings: The engine.
        version: Of the bindings.
        onnx: The graph.
        engine: File to write.
        timing_cache: Read when it is there and fits this device, and written; None for neither.
        layers: JSON to write of the engine's layers; None for none.
        on_progress: Told of a phase, its steps done and its steps in all, where the version tells.

    Raises:
        SettingsError: The version cannot do what the settings ask for.
        ApiError: TensorRT's own reason.
        OSError: A file cannot be read or written.
    """
    import tensorrt as trt

    check(settings, version)
    log = _logger(trt)
    builder = trt.Builder(log)
    network = builder.create_network(_network_flags(trt, settings, version))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(onnx.read_bytes(), str(onnx)):
        raise ApiError(_parser_errors(parser) or log.first_error() or "no reason given", memory=log.memory())
    config, made = builder.create_builder_config(), ApiBuild()
    _configure_(config, trt, settings, version, made)
    if hasattr(trt, "IProgressMonitor") and hasattr(config, "progress_monitor"):
        config.progress_monitor = _monitor(trt, on_progress)
    _add_profile_(config, builder, settings)
    cache = None if timing_cache is None else _use_cache_(config, timing_cache, made)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        reason = log.first_error() or "no reason given"
        raise ApiError(reason, memory=log.memory())
    _write(engine, bytes(plan))
    if timing_cache is not None and cache is not None:
        _write(timing_cache, bytes(config.get_timing_cache().serialize()))
    if layers is not None:
        _write_layers(trt, log, plan, settings, layers, made)
    return made


def _network_flags(trt: Any, settings: BuildSettings, version: Version) -> int:
    """Explicit batch where it still has to be asked for, and binding types where a version can have either."""
    explicit = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
    flags = 0 if explicit is None else 1 << int(explicit)
    if strongly_typed(settings, version) and version[0] == 10:
        flags |= 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    return flags


def _configure_(config: Any, trt: Any, settings: BuildSettings, version: Version, made: ApiBuild) -> None:
    """Sets flags and limits; what was set is noted in `made`."""
    wanted = list(permissions(settings, version))
    if settings.sparsity:
        wanted.append("SPARSE_WEIGHTS")
    if settings.version_compatible:
        wanted.append("VERSION_COMPATIBLE")
    if settings.dla_core is not None:
        wanted.append("GPU_FALLBACK")
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = settings.dla_core
    for name in wanted:
        config.set_flag(getattr(trt.BuilderFlag, name))
    if not settings.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
        wanted.append("no TF32")
    if settings.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mib * BYTES_PER_MIB)
    if settings.optimization_level is not None:
        config.builder_optimization_level = settings.optimization_level
    if settings.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        wanted.append("AMPERE_PLUS")
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    made.flags += ["STRONGLY_TYPED"] if strongly_typed(settings, version) else []
    made.flags += wanted


def _add_profile_(config: Any, builder: Any, settings: BuildSettings) -> None:
    """The shapes that the engine takes; a graph without free axes needs none."""
    if not settings.inputs:
        return
    profile = builder.create_optimization_profile()
    for entry in settings.inputs:
        profile.set_shape(entry.name, entry.min, entry.opt, entry.max)
    if config.add_optimization_profile(profile) < 0:
        shapes = ", ".join(f"{entry.name} {entry.min} to {entry.max}" for entry in settings.inputs)
        raise ApiError(f"the graph does not take the shapes of the optimisation profile: {shapes}")


def _use_cache_(config: Any, path: Path, made: ApiBuild) -> Any:
    """Gives the builder the timings of earlier builds; those of another device or version are left out, and said.

    Returns:
        The cache, which must live as long as the build; None where not even an empty one can be had.
    """
    content = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(content)
    # False: timings of another GPU would choose kernels by numbers that are not true here.
    if cache is not None and config.set_timing_cache(cache, False):
        return cache
    if content:
        made.notes.append("the timing cache is damaged, or of another device or version: it is ignored")
    cache = config.create_timing_cache(b"")
    if cache is not None and config.set_timing_cache(cache, False):
        return cache
    made.notes.append("TensorRT gave no timing cache: none is written")
    return None


def _write_layers(trt: Any, log: Any, plan: Any, settings: BuildSettings, path: Path, made: ApiBuild) -> None:
    """Writes what the engine is made of; an engine that tells nothing is no failure of the build."""
    runtime = trt.Runtime(log)
    if settings.version_compatible:
        runtime.engine_host_code_allowed = True  # it brings a runtime of its own along, and it was built here
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise ApiError(f"TensorRT cannot read the engine that it just built: {log.first_error()}", memory=log.memory())
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    if text:
        _write(path, text.encode())
    else:
        made.notes.append("TensorRT told nothing about the layers of the engine")


def _parser_errors(parser: Any) -> str:
    """The parser's first error, with the operator and its node."""
    if not parser.num_errors:
        return ""
    error = parser.get_error(0)
    # 8.6 does not name the operator.
    operator = error.node_operator() if hasattr(error, "node_operator") else ""
    name = error.node_name() if hasattr(error, "node_name") else ""
    called = f", {name!r}" if name else ""
    where = f"the operator {operator} (node {error.node()}{called})" if operator else f"node {error.node()}{called}"
    return f"it cannot take {where}: {error.desc()}"


def _logger(trt: Any) -> Any:
    """A logger that keeps errors and tells whether memory was short; everything also goes to standard error."""

    class Log(trt.ILogger):  # type: ignore[misc]  # the base is known where TensorRT is
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.short = False

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(msg.strip())
            if severity not in (trt.ILogger.Severity.VERBOSE, trt.ILogger.Severity.INFO):
                os.write(2, f"[{severity.name[0]}] {msg}\n".encode())
            self.short = self.short or any(word in msg for word in OUT_OF_MEMORY)

        def first_error(self) -> str:
            return self.errors[0] if self.errors else ""

        def memory(self) -> bool:
            return self.short

    return Log()


def _monitor(trt: Any, on_progress: Callable[[str, int, int], None]) -> Any:
    """Passes the steps of the builder's outermost phases on."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # as above
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if not parent_phase:
                self.steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self.steps:
                on_progress(phase_name, step + 1, self.steps[phase_name])
            return True  # go on

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

    return Monitor()


def _write(path: Path, content: bytes) -> None:
    """A file that is whole or not there."""
    made = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        made.write_bytes(content)
        os.replace(made, path)
    finally:
        made.unlink(missing_ok=True)
