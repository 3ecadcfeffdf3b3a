"""`trtexec` command lines: the same settings in the words of each version of TensorRT.

What each release understands was read in its own source (`samples/common/sampleOptions.cpp`); an option that a release
does not know ends it with `Unknown option`. Standard library of Python 3.10 only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekd.runtimes.engines.settings import BuildSettings, Version, check, permissions, strongly_typed

SKIPS = (8, 6, 0)
"""From here on `--skipInference`; 8.5 has `--buildOnly`, which 10 does not know any more."""


@dataclass(frozen=True)
class BuildFiles:
    """Files of one build, as they are written on the command line.

    Attributes:
        onnx: The graph.
        engine: The engine to write.
        timing_cache: Read when it is there, and written; None for neither.
        layers: JSON to write of what the engine is made of; None for none.
    """

    onnx: str
    engine: str
    timing_cache: str | None = None
    layers: str | None = None


def build_arguments(settings: BuildSettings, version: Version, files: BuildFiles) -> list[str]:
    """The options of `trtexec` that build an engine and do not run it.

    Args:
        settings: The engine.
        version: Of the `trtexec` that is meant.
        files: Where things are.

    Raises:
        SettingsError: The version cannot do what the settings ask for.
    """
    check(settings, version)
    words = [f"--onnx={files.onnx}", f"--saveEngine={files.engine}"]
    for word in ("min", "opt", "max"):
        if settings.inputs:
            shapes = ",".join(f"{entry.name}:{_sizes(getattr(entry, word))}" for entry in settings.inputs)
            words.append(f"--{word}Shapes={shapes}")
    words += precision_arguments(settings, version)
    if settings.workspace_mib is not None:
        words.append(f"--memPoolSize=workspace:{settings.workspace_mib}")
    if settings.optimization_level is not None:
        words.append(f"--builderOptimizationLevel={settings.optimization_level}")
    if settings.sparsity:
        words.append("--sparsity=enable")
    if settings.dla_core is not None:
        words += [f"--useDLACore={settings.dla_core}", "--allowGPUFallback"]
    if settings.version_compatible:
        words.append("--versionCompatible")
    if settings.hardware_compatible:
        words.append("--hardwareCompatibilityLevel=ampere+")
    if files.timing_cache is not None:
        words.append(f"--timingCacheFile={files.timing_cache}")
    if files.layers is not None:
        words += ["--profilingVerbosity=detailed", f"--exportLayerInfo={files.layers}"]
    return [*words, "--skipInference" if version >= SKIPS else "--buildOnly"]


def precision_arguments(settings: BuildSettings, version: Version) -> list[str]:
    """The options that make the builder keep to the graph's types: permissions up to 8.6, strong typing in 10."""
    words = [f"--{name.lower()}" for name in permissions(settings, version)]
    # From 11 on it is the only mode, and the option is deprecated.
    if strongly_typed(settings, version) and version[0] == 10:
        words.append("--stronglyTyped")
    if not settings.tf32:
        words.append("--noTF32")
    return words


def run_arguments(
    engine: str,
    version: Version,
    *,
    inputs: Mapping[str, str],
    shapes: Mapping[str, Sequence[int]],
    outputs: str,
    seconds: int,
    host_code: bool = False,
) -> list[str]:
    """The options that run an engine on given inputs, time it, and write what it computed.

    Args:
        engine: The engine.
        version: Of the `trtexec` that is meant.
        inputs: File of raw values by input name.
        shapes: Of the inputs with free axes.
        outputs: JSON to write the outputs of the last inference to.
        seconds: To time; 0 runs it once.
        host_code: Whether the engine may bring a runtime of its own along, as a version-compatible one does.
    """
    words = [f"--loadEngine={engine}"]
    if shapes:
        words.append("--shapes=" + ",".join(f"{name}:{_sizes(sizes)}" for name, sizes in shapes.items()))
    words.append("--loadInputs=" + ",".join(f"{name}:{path}" for name, path in inputs.items()))
    words.append(f"--exportOutput={outputs}")
    timed = ["--warmUp=500", f"--duration={seconds}"] if seconds else ["--warmUp=0", "--duration=0", "--iterations=1"]
    # 11 took copies to the host out by default, and without them there may be nothing to export.
    copies = ["--includeDataTransfers"] if version[0] >= 11 else []
    return [*words, *timed, *copies, *(["--versionCompatible"] if host_code else [])]


def shown(program: str | Path, arguments: Sequence[str]) -> str:
    """The command as a person types it into a POSIX shell."""
    return " ".join([str(program), *(f"'{word}'" if set(word) & _SPECIAL else word for word in arguments)])


_SPECIAL = frozenset(" '\"$`\\|&;<>()*?[]#~!{}")


def _sizes(shape: Sequence[int]) -> str:
    return "x".join(str(size) for size in shape)
