"""What it means to run a model: the contract of runtimes and sessions, and the registry of runtimes.

A runtime is looked up by name and says whether it can work here; opening a model with it gives a session. Nothing here
imports a runtime's library, so asking what is installed is cheap, and a missing library is an answer, not a crash.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Protocol, Self, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from edgekd.core.blobs import Blobs
from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.layers import LayerReport
from edgekd.core.registry import Registry
from edgekd.errors import DeviceUnavailable, UserError

FloatArray: TypeAlias = NDArray[np.float32]


@runtime_checkable
class Session(Protocol):
    """A model that is loaded and ready to run. A context manager; closed at the end of its block, and only once.

    A session is used by one thread at a time. Outputs belong to the caller: a later call does not change them.
    """

    @property
    def input_names(self) -> tuple[str, ...]:
        """The keys that `infer` expects."""

    def infer(self, feeds: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """Outputs by name, float32, in the order of the graph.

        Args:
            feeds: Contiguous float32 arrays, (N, C, H, W) for images; N is the batch the session was opened with, or
                any when it was opened with None.

        Raises:
            UserError: An input is missing, unknown, or of a shape the model does not take.
        """

    def environment(self) -> dict[str, JsonValue]:
        """What really runs: `runtime`, `version`, `provider`, `threads`, and the settings that affect latency."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Timer(Protocol):
    """Timed calls of an engine that runs in another process, with the inputs it was given."""

    def warm_up(self, seconds: float) -> tuple[int, int]:
        """Calls for so long, three times at least; (calls, nanoseconds of the fastest one)."""

    def turn(self, calls: int) -> list[int]:
        """Nanoseconds of each of `calls` calls, made after one that is not timed."""


@runtime_checkable
class OwnClock(Protocol):
    """What a session adds whose engine runs in another process: figures taken there, free of the way between the two.

    Such a session says in its `environment()` what was timed, as `timed_region`.
    """

    @property
    def load_ms(self) -> float:
        """Time that opening the model took, the start of its process left out."""

    def timer(self, feeds: Mapping[str, FloatArray]) -> Timer:
        """Times calls with these inputs, which are sent once."""

    def memory_peak_mib(self) -> float | None:
        """Most resident MiB since just before the model was loaded, less what was resident then; None if unknown."""


@dataclass(frozen=True, kw_only=True)
class Availability:
    """Whether a runtime can work on this machine.

    Attributes:
        ok: It can.
        version: Of the library, None when it is not installed.
        reason: Why it cannot, a clause without a full stop; empty when it can.
        install: The command or step that would change that; empty when there is none.
    """

    ok: bool
    version: str | None = None
    reason: str = ""
    install: str = ""


class Runtime(ABC):
    """Opens models for one library. Stateless; the registry holds one instance of each.

    Attributes:
        name: Registry key.
        accepts: Kinds of bundle it can open.
        formats: Of ENGINE bundles, the formats that it can open: an engine is written for one runtime.
        model_file: The file of such a bundle that `open` takes.
    """

    name: ClassVar[str]
    accepts: ClassVar[frozenset[BundleKind]]
    formats: ClassVar[frozenset[str]] = frozenset()
    model_file: ClassVar[str]

    def takes(self, bundle: ModelBundle) -> bool:
        """Whether it can open the bundle, by its kind and, for an ENGINE, its format."""
        return bundle.kind in self.accepts and (bundle.kind is not BundleKind.ENGINE or bundle.format in self.formats)

    @abstractmethod
    def availability(self) -> Availability:
        """Whether it can work here; never raises."""

    @abstractmethod
    def open(self, path: Path, *, threads: int | None = None, batch: int | None = None) -> Session:
        """A session on a model file.

        Args:
            path: The model.
            threads: CPU threads; None leaves the library's default.
            batch: Fixes the batch, which lets the runtime plan memory and kernels; None keeps it dynamic.

        Raises:
            UserError: The file is no model this runtime reads, or its batch is fixed to another value.
        """

    def open_bundle(
        self, bundle: ModelBundle, blobs: Blobs, *, threads: int | None = None, batch: int | None = None
    ) -> Session:
        """A session on a bundle that this runtime accepts; `edgekd.runtimes.session.open_bundle` checks that."""
        return self.open(blobs.path(bundle.file(self.model_file)), threads=threads, batch=batch)

    def layers(
        self,
        bundle: ModelBundle,
        blobs: Blobs,
        feeds: Mapping[str, FloatArray],
        *,
        threads: int | None = None,
        batch: int | None = None,
        calls: int = 20,
    ) -> LayerReport | None:
        """Times of the layers, recorded in a session of its own; None where the library does not tell them.

        Args:
            bundle: As for `open_bundle`.
            blobs: Finds its files.
            feeds: As for `Session.infer`.
            threads: CPU threads; None leaves the library's default.
            batch: Fixes the batch.
            calls: How many calls to record.

        Raises:
            UserError: The model does not open or run.
        """
        return None


class RuntimeRegistry(Registry[Runtime]):
    """Runtimes by name. Those with a colon, a library on a certain device, are had by name and not listed: nothing is
    measured, tried or proposed on a device that nobody named."""

    def __iter__(self) -> Iterator[str]:
        return (name for name in super().__iter__() if ":" not in name)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def on_devices(self) -> tuple[str, ...]:
        """The names that are not listed."""
        return tuple(name for name in super().__iter__() if ":" in name)


RUNTIMES = RuntimeRegistry(
    "runtime",
    {
        "onnxruntime": "edgekd.runtimes.onnxruntime:RUNTIME",
        "openvino": "edgekd.runtimes.openvino:RUNTIME",
        "torch": "edgekd.runtimes.torch:RUNTIME",
        "tensorrt": "edgekd.runtimes.tensorrt:RUNTIME",
        "executorch": "edgekd.runtimes.executorch:RUNTIME",
        "ncnn": "edgekd.runtimes.ncnn:RUNTIME",
        "litert": "edgekd.runtimes.litert:RUNTIME",
        "ort-web-node": "edgekd.runtimes.onnxruntime_web:NODE",
        "ort-web-browser": "edgekd.runtimes.onnxruntime_web:BROWSER",
        "onnxruntime:cuda": "edgekd.runtimes.onnxruntime_providers:CUDA",
        "onnxruntime:tensorrt": "edgekd.runtimes.onnxruntime_providers:TENSORRT",
        "onnxruntime:qnn": "edgekd.runtimes.onnxruntime_providers:QNN",
        "onnxruntime:nnapi": "edgekd.runtimes.onnxruntime_providers:NNAPI",
        "onnxruntime:coreml": "edgekd.runtimes.onnxruntime_providers:COREML",
        "onnxruntime:xnnpack": "edgekd.runtimes.onnxruntime_providers:XNNPACK",
        "onnxruntime:directml": "edgekd.runtimes.onnxruntime_providers:DIRECTML",
        "onnxruntime:openvino": "edgekd.runtimes.onnxruntime_providers:OPENVINO",
        "openvino:gpu": "edgekd.runtimes.openvino:GPU",
        "openvino:npu": "edgekd.runtimes.openvino:NPU",
        "openvino:auto": "edgekd.runtimes.openvino:AUTO",
    },
)


def open_bundle(
    bundle: ModelBundle, blobs: Blobs, runtime: str, *, threads: int | None = None, batch: int | None = None
) -> Session:
    """A session of the named runtime on a bundle.

    Args:
        bundle: TORCH, ONNX or ENGINE; an ENGINE opens in the runtime of its format only.
        blobs: Finds its files.
        runtime: Registry name.
        threads: CPU threads; None leaves the library's default.
        batch: Fixes the batch; None keeps it dynamic.

    Raises:
        UserError: No such runtime, or one that does not take this kind of bundle or this format of engine.
        DeviceUnavailable: The runtime does not work here, or the engine was built for another device.
    """
    chosen = RUNTIMES.get(runtime)
    if not chosen.takes(bundle):
        able = ", ".join(name for name in RUNTIMES if RUNTIMES.get(name).takes(bundle)) or "no runtime"
        raise UserError(
            f"The runtime {runtime!r} runs {_taken(chosen)}, but this is {described(bundle)}.",
            hint=f"{able} can run it",
        )
    found = chosen.availability()
    if not found.ok:
        raise DeviceUnavailable(
            f"The runtime {runtime!r} cannot work here: {found.reason}.", hint=found.install or None
        )
    return chosen.open_bundle(bundle, blobs, threads=threads, batch=batch)


def noun(bundle: ModelBundle) -> str:
    """`onnx bundle`, or `tensorrt engine`: what a sentence calls it."""
    return f"{bundle.format} engine" if bundle.kind is BundleKind.ENGINE else f"{bundle.kind} bundle"


def described(bundle: ModelBundle) -> str:
    """The noun with its article: `an onnx bundle`."""
    return f"{'an' if noun(bundle)[0] in 'aeio' else 'a'} {noun(bundle)}"


def _taken(runtime: Runtime) -> str:
    """`onnx bundles`, `executorch engines`: what a runtime runs, in a sentence."""
    kinds = [f"{kind} bundles" for kind in sorted(runtime.accepts - {BundleKind.ENGINE})]
    return " and ".join([*kinds, *(f"{name} engines" for name in sorted(runtime.formats))])


def computes_in_int8(bundle: ModelBundle) -> bool:
    """Whether the bundle is meant to compute in 8 bits; weight-only INT8 stores in 8 bits and computes in float."""
    return bundle.tags.get("precision") == "int8" and bundle.tags.get("scheme") != "weight-only"


def checked_feeds(feeds: Mapping[str, FloatArray], shapes: Mapping[str, tuple[int | str, ...]]) -> None:
    """Compares what was fed with what the model takes; costs a few microseconds.

    Args:
        feeds: Arrays by input name.
        shapes: Expected shape by input name; a string is a dynamic axis.

    Raises:
        UserError: They differ; the message names the first input that does.
    """
    for name in sorted(set(shapes) ^ set(feeds)):
        wrong = "is missing" if name in shapes else "is not an input of this model"
        raise UserError(f"The input {name!r} {wrong}; the model takes: {', '.join(shapes)}.")
    for name, shape in shapes.items():
        found = feeds[name]
        fits = found.ndim == len(shape) and all(
            isinstance(size, str) or size == given for size, given in zip(shape, found.shape, strict=True)
        )
        if not fits or found.dtype != np.float32:
            wanted = "x".join(str(size) for size in shape)
            raise UserError(
                f"The input {name!r} must be float32 of shape {wanted}, got {found.dtype} of shape "
                f"{'x'.join(str(size) for size in found.shape)}.",
                hint="feed preprocessed images, and the batch that the session was opened with",
            )
