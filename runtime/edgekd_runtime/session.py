"""What it means to run an engine here, and which module knows how; a library is imported when an engine asks for it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from edgekd_runtime.bundle import Bundle
from edgekd_runtime.deploy import EngineEntry
from edgekd_runtime.errors import Unusable

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Options:
    """How engines are opened.

    Attributes:
        threads: CPU threads; None takes those that the engine was measured with.
        rebuild: Whether a TensorRT engine that does not fit is built again here, which may take minutes.
        cache: Where engines that were built here are kept.
    """

    threads: int | None
    rebuild: bool
    cache: Path


class Session(Protocol):
    """An engine that is ready to run, for one thread at a time.

    Attributes:
        batch: Images that each call takes; None when it may vary.
        max_batch: Most images that a call takes; None without a limit.
    """

    batch: int | None
    max_batch: int | None

    def run(self, images: FloatArray) -> FloatArray:
        """(N, K) float32, the first output. Args: images: (N, C, H, W) float32, contiguous, N within the limits."""

    def facts(self) -> dict[str, Any]:
        """What really runs: `version`, `provider`, `threads`, and where the engine came from."""

    def close(self) -> None:
        """Frees memory and threads; idempotent."""


class Opener(Protocol):
    """A module of this package that runs engines with one library."""

    INSTALL: str
    FORMATS: tuple[str, ...]

    def open_engine(self, bundle: Bundle, entry: EngineEntry, options: Options) -> Session:
        """A session on an engine.

        Raises:
            Unusable: The library is missing, or the engine does not work here.
            ImportError: The library is missing.
        """


MODULES = {
    "litert": "edgekd_runtime.litert",
    "ncnn": "edgekd_runtime.ncnn",
    "onnxruntime": "edgekd_runtime.onnxruntime",
    "openvino": "edgekd_runtime.openvino",
    "tensorrt": "edgekd_runtime.tensorrt",
}
ELSEWHERE = {
    "executorch": "its Python binding needs PyTorch; run the .pte file with ExecuTorch's C++, Android or iOS runtime",
    "ort-web-browser": "it runs in a browser",
    "ort-web-node": "it runs in Node.js",
    "torch": "this package runs without PyTorch",
}
"""Runtimes that edgekd knows and that Python without PyTorch cannot run."""


def open_session(bundle: Bundle, entry: EngineEntry, runtime: str, options: Options) -> Session:
    """A session of one runtime on one engine.

    Raises:
        Unusable: It does not work here; the reason is a clause.
    """
    if runtime not in MODULES:
        library, _, device = runtime.partition(":")
        if device and library in MODULES:
            raise Unusable(f"this package runs {library} on the CPU only, not with {device}")
        raise Unusable(ELSEWHERE.get(runtime, f"this version of edgekd-runtime does not know the runtime {runtime!r}"))
    module = cast(Opener, importlib.import_module(MODULES[runtime]))
    if entry.format not in module.FORMATS:
        raise Unusable(f"{runtime} does not run engines of the format {entry.format!r}")
    try:
        return module.open_engine(bundle, entry, options)
    except ImportError as err:
        raise Unusable(f"{runtime} is not installed: {err}", module.INSTALL) from err


def model_file(entry: EngineEntry, name: str) -> str:
    """The path in the bundle of a file that an engine must have.

    Raises:
        Unusable: It has none.
    """
    if name not in entry.files:
        raise Unusable(f"the bundle lists no {name} for it")
    return entry.files[name]
