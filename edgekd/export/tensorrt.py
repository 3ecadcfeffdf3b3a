"""What a TensorRT engine of a bundle is to be: options, limits from the target's card, and commands that build it.

The precision is in the graph (float16 values, Q/DQ nodes), never in calibrators or layer settings, which TensorRT 11
removed. What builds is in `edgekd/runtimes/engines/`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, model_validator

from edgekd.core.bundle import ModelBundle, TensorSpec
from edgekd.core.stage import StageConfig
from edgekd.errors import UserError
from edgekd.runtimes.engines.command import BuildFiles, build_arguments, shown
from edgekd.runtimes.engines.settings import (
    INT8,
    INT8_FP16,
    NEWEST_MAJOR,
    OLDEST,
    SCHEMES,
    BuildSettings,
    InputShapes,
    SettingsError,
    Version,
    check,
)
from edgekd.runtimes.onnx_file import MODEL_FILE
from edgekd.targets.schema import Target

ENGINE_FILE = "model.engine"
WORKSPACE_SHARE = 4
"""A kernel's scratch memory is at most this part of the device's: on a Jetson the system and the images share it."""
NOT_POSSIBLE = "not possible: "
FAMILIES: tuple[Version, ...] = ((8, 5, 3), (8, 6, 1), (10, 3, 0), (11, 0, 0))
"""A release of each family whose command line differs."""


class BuildConfig(StageConfig):
    """How engines are built.

    Attributes:
        builder: `python` is TensorRT's Python API, `trtexec` the program that JetPack ships, `auto` what is there.
        builds: Engines that are built of each graph; the fastest that passes parity is kept.
        min_batch: Smallest batch that the engine takes.
        opt_batch: The batch that kernels are chosen for.
        max_batch: Largest batch.
        workspace_mib: Limit of a kernel's scratch memory; None takes a quarter of the card's memory.
        optimization_level: 0 to 5; None leaves TensorRT's own, 3. Needs 8.6.
        time_limit_s: Seconds after which one build is ended.
        allow_fp16: Lets float32 layers run in half precision; TensorRT below 11 only.
        tf32: Lets float32 layers use TensorFloat-32, TensorRT's own default.
        dla_core: Deep learning accelerator that takes what it can; the GPU takes the rest.
        version_compatible: The engine also runs in later releases of the same major version. Needs 8.6.
        hardware_compatible: The engine also runs on other GPUs from Ampere on, usually slower. Needs 8.6.
        probes: Images that parity is judged on.
        duration_s: Seconds to time each engine, which decides among several.
        atol: Parity: tolerance relative to the spread of the outputs; None takes one for the precision.
        rtol: Parity: added tolerance relative to each output; None takes one for the precision.
    """

    builder: Literal["auto", "python", "trtexec"] = "auto"
    builds: int = Field(default=1, ge=1, le=16)
    min_batch: int = Field(default=1, ge=1)
    opt_batch: int = Field(default=1, ge=1)
    max_batch: int = Field(default=1, ge=1)
    workspace_mib: int | None = Field(default=None, ge=1)
    optimization_level: int | None = Field(default=None, ge=0, le=5)
    time_limit_s: float = Field(default=1800.0, gt=0)
    allow_fp16: bool = False
    tf32: bool = True
    dla_core: int | None = Field(default=None, ge=0)
    version_compatible: bool = False
    hardware_compatible: bool = False
    probes: int = Field(default=4, ge=1, le=64)
    duration_s: float = Field(default=2.0, ge=0)
    atol: float | None = Field(default=None, ge=0)
    rtol: float | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.min_batch <= self.opt_batch <= self.max_batch:
            raise ValueError(
                f"batches must rise: min_batch {self.min_batch}, opt_batch {self.opt_batch}, max_batch {self.max_batch}"
            )
        return self


def is_read(model: ModelBundle) -> bool:
    """Whether TensorRT reads the form of quantization of a graph."""
    return model.tags.get("scheme", "") in SCHEMES


def require_read(model: ModelBundle) -> None:
    """Refuses a graph in a form of quantization that TensorRT does not read.

    Raises:
        UserError: The form, and the one to use.
    """
    if not is_read(model):
        raise UserError(
            f"TensorRT does not take the quantization scheme {model.tags['scheme']!r}.",
            hint=f"quantize with scheme {INT8}",
        )


def settings_for(model: ModelBundle, config: BuildConfig, target: Target | None) -> BuildSettings:
    """The engine that a graph becomes.

    Args:
        model: ONNX; its tags tell the precision, and whether its weights have the 2:4 pattern.
        config: What was asked for.
        target: Its memory limits the workspace; None leaves TensorRT's own limit.

    Raises:
        UserError: Batches that the graph does not take.
    """
    workspace_mib = config.workspace_mib
    if workspace_mib is None and target is not None:
        workspace_mib = max(1, target.memory_mib // WORKSPACE_SHARE)
    shapes = [_shapes(spec, config) for spec in model.inputs]
    return BuildSettings(
        inputs=tuple(entry for entry in shapes if entry is not None),
        precision=str(model.tags.get("precision", "fp32")),
        float16_scales=model.tags.get("scheme") == INT8_FP16,
        workspace_mib=workspace_mib,
        optimization_level=config.optimization_level,
        allow_fp16=config.allow_fp16,
        tf32=config.tf32,
        # Considers sparse kernels for the layers whose weights have the pattern, and takes them where they are faster.
        sparsity="sparsity" in model.tags,
        dla_core=config.dla_core,
        version_compatible=config.version_compatible,
        hardware_compatible=config.hardware_compatible,
    )


def run_shape(spec: TensorSpec) -> tuple[int, ...]:
    """The shape in which one image is run."""
    return tuple(size if isinstance(size, int) else 1 for size in spec.shape)


def versions_of(target: Target) -> tuple[Version, ...]:
    """Releases of TensorRT that the card names and edgekd builds for, oldest first.

    A card lists them (`8.6 (JetPack 6.0), 10.3`) or gives the oldest (`>=8.6`).

    Raises:
        UserError: The target does not run TensorRT.
    """
    support = target.support("tensorrt")
    if support is None:
        runs = ", ".join(entry.runtime for entry in target.runtimes)
        raise UserError(f"The target {target.name} does not run TensorRT; it runs {runs}.")
    named = [
        (int(major), int(minor), 0) for major, minor in re.findall(r"(?<![\d.])(\d+)\.(\d+)", _bare(support.versions))
    ]
    if support.versions.lstrip().startswith(">=") and named:
        return tuple(family for family in FAMILIES if family[:2] >= named[0][:2])
    usable = sorted(version for version in named if version >= OLDEST and version[0] <= NEWEST_MAJOR)
    return tuple(usable) or FAMILIES


def types_strongly(target: Target) -> bool:
    """Whether a release that the card names runs a graph in the types that it has, and reads float16 scales."""
    return any(version[0] >= 10 for version in versions_of(target))


def outside_of_card(target: Target, version: Version) -> str:
    """A sentence where a card does not speak of a version; empty where it does."""
    known = versions_of(target)
    families = {(major, minor) if major < 10 else (major,) for major, minor, _ in known}
    mine = version[:2] if version[0] < 10 else version[:1]
    if mine in families:
        return ""
    support = target.support("tensorrt")
    said = support.versions if support is not None else ""
    return f"TensorRT {'.'.join(map(str, version))} is outside of what the card {target.name} names: {said}."


def commands_for(target: Target, model: ModelBundle, config: BuildConfig | None = None) -> dict[str, str]:
    """The `trtexec` line by release, one for each way to say it, for the folder of `model.onnx`.

    A release that cannot do what is asked for has its reason in place of the command.

    Raises:
        UserError: The target does not run TensorRT, or see `settings_for`.
    """
    asked = config or BuildConfig()
    settings = settings_for(model, asked, target)
    found: dict[str, str] = {}
    for version in versions_of(target):
        name = f"{version[0]}.{version[1]}" if version[0] < 10 else str(version[0])
        try:
            check(settings, version)
            found[name] = shown("trtexec", build_arguments(settings, version, BuildFiles(MODEL_FILE, ENGINE_FILE)))
        except SettingsError as err:
            found[name] = f"{NOT_POSSIBLE}{err}"
    return found


def newest_command(commands: Mapping[str, str]) -> str:
    """The line for the newest release that can do what was asked for; the newest one's reason where none can."""
    lines = [line for line in commands.values() if not line.startswith(NOT_POSSIBLE)] or list(commands.values())
    return lines[-1]


def build_command(target: Target, model: ModelBundle, *, max_batch: int = 1) -> str:
    """The `trtexec` line for the newest release that the card names, in the folder of `model.onnx`.

    Args:
        target: A device with TensorRT.
        model: The ONNX bundle that is built.
        max_batch: Largest batch of the engine; it is optimised for 1.

    Raises:
        UserError: The target does not run TensorRT.
    """
    return newest_command(commands_for(target, model, BuildConfig(max_batch=max_batch)))


def batches_from_shapes(given: Mapping[str, str | None], model: ModelBundle) -> dict[str, int]:
    """`min_batch`, `opt_batch` and `max_batch` from shapes such as `images:4x3x224x224`, for those that are given.

    Args:
        given: Text by `min`, `opt`, `max`.
        model: Whose input is meant.

    Raises:
        UserError: Another input, another form, or a size that the graph fixes differently.
    """
    spec, found = model.inputs[0], {}
    for which, text in given.items():
        if text is None:
            continue
        name, _, sizes = text.rpartition(":")
        parts = sizes.lower().split("x")
        wanted = "x".join(str(size) for size in spec.shape)
        fits = len(parts) == len(spec.shape) and all(part.isdecimal() and int(part) > 0 for part in parts)
        if not fits or name not in ("", spec.name) or [int(part) for part in parts[1:]] != list(spec.shape[1:]):
            raise UserError(
                f"--{which}-shapes {text!r}: the graph's input is {spec.name}:{wanted}.",
                hint=f"--{which}-shapes {spec.name}:{'x'.join(['4', *map(str, spec.shape[1:])])}",
            )
        found[f"{which}_batch"] = int(parts[0])
    return found


def _shapes(spec: TensorSpec, config: BuildConfig) -> InputShapes | None:
    """The profile of one input; None for one whose shape is fixed.

    Raises:
        UserError: A fixed batch that is another than the one that is asked for, or a free axis beside the batch.
    """
    axis, *image = spec.shape
    if any(isinstance(size, str) for size in image):
        raise UserError(
            f"The input {spec.name} has free axes beside the batch ({'x'.join(map(str, spec.shape))}).",
            hint="export it with a fixed image size: an engine is optimised for one",
        )
    sizes = [int(size) for size in image]
    if isinstance(axis, int):
        if (config.min_batch, config.max_batch) not in ((1, 1), (axis, axis)):
            raise UserError(
                f"The batch of {spec.name} is fixed to {axis} in the graph, and {config.max_batch} was asked for.",
                hint="export it with a dynamic batch",
            )
        return None
    lowest, best, most = ((batch, *sizes) for batch in (config.min_batch, config.opt_batch, config.max_batch))
    return InputShapes(spec.name, lowest, best, most)


def _bare(text: str) -> str:
    """A card's versions without what stands in brackets, which names releases of JetPack."""
    return re.sub(r"\([^)]*\)", "", text)
