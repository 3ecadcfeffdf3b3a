"""What an engine is to be, independent of who builds it, and what each TensorRT needs to be told for that.

The precision is in the graph: float16 values, Q/DQ nodes. From TensorRT 10 on the network is strongly typed, so what
the graph says is what runs; before that, permissions are given for the precisions that the graph holds. There is no
calibration anywhere. Standard library of Python 3.10 only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Version = tuple[int, int, int]

OLDEST: Version = (8, 5, 0)
"""JetPack 5. Older ones lack `--memPoolSize` and the names of tensors that everything here is asked by."""
NEWEST_MAJOR = 11
_FULL = (8, 6, 0)
"""Optimisation levels, and engines that also fit other versions and other GPUs."""
_STRONG = (10, 0, 0)
_LAST_WITH_DLA, _DLA_AGAIN = (10, 7), (11, 4, 1)
_ALWAYS_STRONG = (11, 0, 0)
INT8, INT8_FP16 = "tensorrt-s8", "tensorrt-s8-fp16"
"""Forms of quantization: Q/DQ with signed symmetric activations and float32 biases; the same with float16 between."""
SCHEMES = ("", INT8, INT8_FP16)
"""Graphs that TensorRT reads; the first are unquantized."""
PERMISSIONS: Mapping[str, tuple[str, ...]] = {"fp32": (), "fp16": ("FP16",), "int8": ("INT8", "FP16")}
"""Builder flags by precision, for networks that are not strongly typed."""


class SettingsError(ValueError):
    """Settings that a version of TensorRT cannot carry out; the message says which and since when it could."""


@dataclass(frozen=True)
class InputShapes:
    """Shapes of one input that the optimisation profile spans; the kernels are chosen for `opt`."""

    name: str
    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True)
class BuildSettings:
    """One engine.

    Attributes:
        inputs: Shapes of the inputs with free axes; the others need none.
        precision: `fp32`, `fp16` or `int8`, as the graph has it.
        float16_scales: The graph's Q/DQ nodes have scales in float16, which the parser reads from 10 on.
        workspace_mib: Most scratch memory that a kernel may ask for; None leaves TensorRT's own, all of the device.
        optimization_level: 0 (quick to build) to 5 (searches longest); None leaves TensorRT's own, 3.
        allow_fp16: Lets layers that are float32 in the graph run in half precision, where the version can be allowed
            to: below 11. The network is then not strongly typed.
        tf32: Lets float32 layers use TensorFloat-32, TensorRT's own default.
        sparsity: Considers sparse kernels for weights that have the 2:4 pattern.
        dla_core: Number of the deep learning accelerator that takes what it can; the rest stays on the GPU.
        version_compatible: The engine also runs in later releases of the same major version.
        hardware_compatible: The engine also runs on other GPUs from Ampere on.
    """

    inputs: tuple[InputShapes, ...]
    precision: str = "fp32"
    float16_scales: bool = False
    workspace_mib: int | None = None
    optimization_level: int | None = None
    allow_fp16: bool = False
    tf32: bool = True
    sparsity: bool = False
    dla_core: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False

    def plain(self) -> dict[str, Any]:
        """JSON-ready data, read back by `settings_from_plain`."""
        return {**dataclasses.asdict(self), "inputs": [_plain_input(entry) for entry in self.inputs]}

    def with_workspace(self, workspace_mib: int) -> BuildSettings:
        """The same engine within another scratch memory."""
        return dataclasses.replace(self, workspace_mib=workspace_mib)


def settings_from_plain(data: Mapping[str, Any]) -> BuildSettings:
    """The settings in what `plain` gave."""
    inputs = tuple(
        InputShapes(str(entry["name"]), *(tuple(int(size) for size in entry[key]) for key in ("min", "opt", "max")))
        for entry in data["inputs"]
    )
    return BuildSettings(**{**data, "inputs": inputs})


def strongly_typed(settings: BuildSettings, version: Version) -> bool:
    """Whether the types of the graph are binding for the builder."""
    return version >= _ALWAYS_STRONG or (version >= _STRONG and not settings.allow_fp16)


def permissions(settings: BuildSettings, version: Version) -> tuple[str, ...]:
    """Names of the precisions that the builder must be allowed to use; none where the types are binding."""
    if strongly_typed(settings, version):
        return ()
    allowed = PERMISSIONS[settings.precision]
    return allowed if not settings.allow_fp16 or "FP16" in allowed else (*allowed, "FP16")


def check(settings: BuildSettings, version: Version) -> None:
    """Refuses what a version cannot do, rather than leaving it out.

    Raises:
        SettingsError: A version outside the known range, or a setting that it does not have.
    """
    shown = ".".join(map(str, version))
    if version < OLDEST or version[0] > NEWEST_MAJOR or version[0] == 9:
        raise SettingsError(f"TensorRT {shown} is outside of what edgekd builds for: 8.5, 8.6, 10 and 11")
    asked = {
        "an optimisation level": settings.optimization_level is not None,
        "a version-compatible engine": settings.version_compatible,
        "a hardware-compatible engine": settings.hardware_compatible,
    }
    for what, wanted in asked.items():
        if wanted and version < _FULL:
            raise SettingsError(f"TensorRT {shown} cannot give {what}: it came with 8.6")
    if settings.float16_scales and version < _STRONG:
        raise SettingsError(
            f"TensorRT {shown} does not read scales in float16, which came with 10: build the plain INT8 graph "
            f"({INT8}), around whose 8-bit layers this version chooses half precision by itself"
        )
    if settings.allow_fp16 and version >= _ALWAYS_STRONG:
        raise SettingsError(
            f"TensorRT {shown} runs float32 layers in float32: half precision must be in the graph (--precision fp16)"
        )
    if settings.dla_core is not None:
        _check_accelerator(settings, version)


def _check_accelerator(settings: BuildSettings, version: Version) -> None:
    """Refuses what a deep learning accelerator does not do, after NVIDIA's page "Working with DLA" (11.3 and 11.4)."""
    if version[:2] > _LAST_WITH_DLA and version < _DLA_AGAIN:
        shown = ".".join(map(str, version))
        raise SettingsError(
            f"TensorRT {shown} has no deep learning accelerators: 10.7 was the last, 11.4.1 has them again"
        )
    if settings.hardware_compatible:
        raise SettingsError("an engine for a deep learning accelerator cannot be compatible with other hardware")
    if settings.precision == "fp32" and not settings.allow_fp16:
        raise SettingsError("a deep learning accelerator computes in FP16 and INT8, and the graph is in FP32")
    if any(not entry.min == entry.opt == entry.max for entry in settings.inputs):
        raise SettingsError("a deep learning accelerator takes one shape: smallest, best and largest must be the same")


def version_from_text(text: str) -> Version:
    """The first three numbers of a version: (10, 3, 0) of `10.3.0.26`.

    Raises:
        SettingsError: Fewer than two numbers.
    """
    parts = [int(part) for part in text.split(".")[:3] if part.isdecimal()]
    if len(parts) < 2:
        raise SettingsError(f"{text!r} is no version of TensorRT")
    major, minor, patch = (*parts, 0)[:3]
    return major, minor, patch


def _plain_input(entry: InputShapes) -> dict[str, Any]:
    return {"name": entry.name, "min": list(entry.min), "opt": list(entry.opt), "max": list(entry.max)}
