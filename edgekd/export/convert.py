"""What it means to convert a model to the engine of another runtime: the contract of converters, and their registry.

A converter writes the files of one format (`ModelBundle.format`), which the runtime of that name reads. The stage
`convert` does what is common to all: it finds the images, packs the files into an ENGINE bundle, and proves in the
runtime itself that the engine computes what the model computes. Nothing here imports a converter's library, so asking
what is installed is cheap. TensorRT is not among them: its engines are built on a device, by the stage `build`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from edgekd.core.blobs import Blobs
from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.digest import Json
from edgekd.core.registry import Registry
from edgekd.errors import BuildFailed
from edgekd.runtimes.session import RUNTIMES, Availability, FloatArray
from edgekd.targets.schema import Precision


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What a converter is asked.

    Attributes:
        source: The model, of the kind that the converter takes.
        blobs: Finds its files.
        precision: One of the converter's.
        images: (N, C, H, W) float32, preprocessed, N >= 1: traces with the first one, calibrates on all of them.
        scratch: A folder of this conversion alone; it is removed afterwards.
    """

    source: ModelBundle
    blobs: Blobs
    precision: Precision
    images: FloatArray
    scratch: Path


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What a converter made.

    Attributes:
        files: Under `scratch`, by the names that `edgekd.runtimes.formats.MODEL_FILES` has for the format.
        scheme: Form of INT8; empty for float engines.
        metrics: Numbers for the report; keys carry units.
        decisions: Sentences on what was substituted, left in float or left to slower kernels, and why.
    """

    files: Mapping[str, Path]
    scheme: str = ""
    metrics: Mapping[str, Json] = field(default_factory=dict)
    decisions: tuple[str, ...] = ()


class Converter(ABC):
    """Writes the files of one format. Stateless; the registry holds one instance of each.

    The same model and images give files that compute the same. Equal bytes are not promised: some tools number nodes
    by the order of hash tables.

    Attributes:
        name: Registry key: the format it writes, and the runtime that reads it.
        tool: What does the work, in texts; its version is the one that `availability` gives.
        takes: Kind of bundle that it converts.
        precisions: What it can write.
        calibrated: Those of them that need images of the task, real or synthetic; noise would give wrong ranges.
    """

    name: ClassVar[str]
    tool: ClassVar[str]
    takes: ClassVar[BundleKind]
    precisions: ClassVar[tuple[Precision, ...]]
    calibrated: ClassVar[frozenset[Precision]] = frozenset({"int8"})

    @abstractmethod
    def availability(self) -> Availability:
        """Whether it can work here, and what installs it; never raises. Says nothing of the runtime."""

    @abstractmethod
    def convert(self, job: Conversion) -> Converted:
        """The files of the engine, which takes one float32 image (1, C, H, W) a run and gives float32 logits (1, K).

        Writes only below `job.scratch`, downloads nothing, and leaves no process behind.

        Raises:
            BuildFailed: The tool cannot convert the model; an operator that it lacks is named, with where it stands:
                see `unsupported`.
        """


CONVERTERS: Registry[Converter] = Registry(
    "converter",
    {
        "executorch": "edgekd.export.executorch:CONVERTER",
        "ncnn": "edgekd.export.ncnn:CONVERTER",
        "litert": "edgekd.export.litert:CONVERTER",
    },
)


def unsupported(converter: str, *, operator: str, where: str, opset: str, message: str) -> BuildFailed:
    """The error for an operator that a converter lacks.

    Args:
        converter: Registry name.
        operator: In the words of the tool.
        where: The node: its name, or the module and line that it came from; empty when the tool does not tell.
        opset: What the operator belongs to, `ONNX opset 20` or `torch 2.9 (ATen)`.
        message: The tool's own, shortened by the caller.
    """
    place = f" at {where}" if where else ""
    return BuildFailed(
        f"{converter} has no {operator}{place} ({opset}); it says: {message}",
        hint=f"replace the operator in the model, or deploy it in another runtime: {alternatives(converter)}",
    )


def alternatives(converter: str) -> str:
    """The other ways to deploy a model: the runtimes of ONNX graphs, then the other converters."""
    graphs = [name for name in RUNTIMES if BundleKind.ONNX in RUNTIMES.get(name).accepts]
    return ", ".join([*graphs, *(name for name in CONVERTERS if name != converter)])
