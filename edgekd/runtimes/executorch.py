"""ExecuTorch on the CPU: runs `.pte` programs, which XNNPACK computes where the converter handed it their operations.

A program takes one image a run; a session runs a batch one after the other. The library has one pool of threads for the
process, and XNNPACK keeps a pointer to it in every loaded program: changing the number of threads under one crashes.
Sessions of different thread counts therefore take turns, and each loads its program again at its turn.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Self
from weakref import WeakSet

import numpy as np
from pydantic import JsonValue

from edgekd.core.blobs import Blobs
from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.layers import LayerReport, layer_report
from edgekd.errors import UserError
from edgekd.nn.quiet import quiet_exporter
from edgekd.runtimes.executorch_layers import BACKEND, layers_from_dump
from edgekd.runtimes.native_output import native_stderr
from edgekd.runtimes.session import Availability, FloatArray, Runtime, checked_feeds, computes_in_int8

INSTALL = "pip install 'edgekd[executorch]'"
INPUT, OUTPUT = "images", "logits"
"""Names where no bundle says others: a program numbers its inputs and outputs."""
WARM_CALLS = 3
FLOAT = 6
"""float32, as a program's metadata numbers it."""


class _Library(NamedTuple):
    """The library and the size that its pool of threads had before anybody changed it."""

    runtime: Any
    bindings: Any
    default_threads: int


@lru_cache(maxsize=1)
def _library() -> _Library:
    with quiet_exporter(), native_stderr():  # torchao warns, cpuinfo narrates
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime as ExecuTorchRuntime

        return _Library(ExecuTorchRuntime.get(), portable_lib, portable_lib._threadpool_get_thread_count())


class ExecuTorchSession:
    """A program's `forward` method; see `Session` for the contract."""

    _all: ClassVar[WeakSet[ExecuTorchSession]] = WeakSet()

    def __init__(
        self, path: Path, *, names: tuple[str, str], threads: int | None, batch: int | None, recording: bool = False
    ) -> None:
        self._path = path
        self._output = names[1]
        self._threads = threads or _library().default_threads
        self._recording = recording
        self._program: Any = None
        self._method: Any = None
        self._load()
        self._shapes = {names[0]: (batch if batch is not None else "N", *self._sizes()[1:])}

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(self._shapes)

    def infer(self, feeds: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        import torch

        checked_feeds(feeds, self._shapes)
        if self._method is None:
            self._load()
        (images,) = feeds.values()
        try:
            found = [self._method.execute([torch.from_numpy(images[at : at + 1])])[0] for at in range(len(images))]
        except RuntimeError as err:
            raise UserError(f"ExecuTorch could not run the program: {err}") from err
        # The memory of an output may be the program's own.
        return {self._output: np.concatenate([logits.numpy() for logits in found]).astype(np.float32)}

    def write_dump(self, folder: Path) -> Path:
        """The file with the times of all operations of all runs, of a session that was opened to record them."""
        found = folder / "times.etdp"
        self._program.write_etdump_result_to_file(str(found), str(folder / "values.bin"))
        return found

    def environment(self) -> dict[str, JsonValue]:
        library = _library()
        return {
            "runtime": "executorch",
            "version": _version(),
            "provider": BACKEND if library.runtime.backend_registry.is_available(BACKEND) else "portable",
            "threads": self._threads,
            "images_per_run": 1,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._unload()

    def _load(self) -> None:
        library = _library()
        with native_stderr() as said:
            if library.bindings._threadpool_get_thread_count() != self._threads:
                for session in list(ExecuTorchSession._all):
                    session._unload()
                library.bindings._unsafe_reset_threadpool(self._threads)
            try:
                self._program = library.runtime.load_program(self._path, enable_etdump=self._recording)
                self._method = self._program.load_method("forward")
            except (RuntimeError, KeyError) as err:
                failure: Exception | None = err
            else:
                failure = None
        if failure is not None:
            raise UserError(
                f"ExecuTorch {_version()} cannot load {self._path}: {said.last or failure}",
                hint="a program fits the versions of ExecuTorch that its own version names: convert the model again",
            ) from failure
        ExecuTorchSession._all.add(self)

    def _unload(self) -> None:
        self._method = self._program = None

    def _sizes(self) -> tuple[int, ...]:
        """The input's shape, of a program that takes one float32 image.

        Raises:
            UserError: It takes something else.
        """
        metadata = self._method.metadata
        inputs = [metadata.input_tensor_meta(index) for index in range(metadata.num_inputs())]
        if len(inputs) != 1 or inputs[0].dtype() != FLOAT or len(inputs[0].sizes()) != 4 or inputs[0].sizes()[0] != 1:
            found = ", ".join(str(tuple(entry.sizes())) for entry in inputs)
            raise UserError(f"{self._path} must take one float32 image (1, C, H, W), but it takes {found}.")
        return tuple(int(size) for size in inputs[0].sizes())


class ExecuTorch(Runtime):
    """PyTorch's ExecuTorch with its XNNPACK backend."""

    name: ClassVar[str] = "executorch"
    accepts: ClassVar[frozenset[BundleKind]] = frozenset({BundleKind.ENGINE})
    formats: ClassVar[frozenset[str]] = frozenset({"executorch"})
    model_file: ClassVar[str] = "model.pte"

    def availability(self) -> Availability:
        try:
            library = _library()
        except (ImportError, OSError) as err:  # OSError: built against another torch
            return Availability(ok=False, reason=f"executorch: {err}", install=INSTALL)
        if not library.runtime.backend_registry.is_available(BACKEND):
            return Availability(ok=False, version=_version(), reason=f"built without {BACKEND}", install=INSTALL)
        return Availability(ok=True, version=_version())

    def kernels(self) -> frozenset[str]:
        """The operators that the runtime computes without a backend, such as `aten::add.out`."""
        return frozenset(_library().runtime.operator_registry.operator_names)

    def open(self, path: Path, *, threads: int | None = None, batch: int | None = None) -> ExecuTorchSession:
        return ExecuTorchSession(path, names=(INPUT, OUTPUT), threads=threads, batch=batch)

    def open_bundle(
        self, bundle: ModelBundle, blobs: Blobs, *, threads: int | None = None, batch: int | None = None
    ) -> ExecuTorchSession:
        path = blobs.path(bundle.file(self.model_file))
        return ExecuTorchSession(path, names=_names(bundle), threads=threads, batch=batch)

    def layers(
        self,
        bundle: ModelBundle,
        blobs: Blobs,
        feeds: Mapping[str, FloatArray],
        *,
        threads: int | None = None,
        batch: int | None = None,
        calls: int = 20,
    ) -> LayerReport:
        path, quantized = blobs.path(bundle.file(self.model_file)), computes_in_int8(bundle)
        with (
            tempfile.TemporaryDirectory(prefix="edgekd-") as folder,
            ExecuTorchSession(path, names=_names(bundle), threads=threads, batch=batch, recording=True) as session,
        ):
            for _ in range(WARM_CALLS + calls):
                session.infer(feeds)
            layers = layers_from_dump(session.write_dump(Path(folder)), calls, quantized=quantized)
        return layer_report(layers, source="ExecuTorch event trace", calls=calls, provider=BACKEND, quantized=quantized)


RUNTIME = ExecuTorch()


def _names(bundle: ModelBundle) -> tuple[str, str]:
    return bundle.inputs[0].name, bundle.outputs[0].name


def _version() -> str:
    from importlib.metadata import version

    return version("executorch")
