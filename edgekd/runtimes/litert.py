"""LiteRT, TensorFlow Lite's successor: opens .tflite files on the CPU, with its XNNPACK kernels where they apply.

The files that `edgekd.export.litert` writes take one image a run, so a session of a larger batch runs its images one
after the other, and its latency is their sum. An INT8 file takes and gives 8-bit integers: rounding the input and
scaling the logits back is part of a call here, as it is in an application.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import numpy as np
from pydantic import JsonValue

from edgekd.core.blobs import Blobs
from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.errors import UserError
from edgekd.runtimes.engines.litert_values import dequantized, kernels, quantized
from edgekd.runtimes.native_output import native_stderr
from edgekd.runtimes.session import Availability, FloatArray, Runtime, checked_feeds

INSTALL = "pip install 'edgekd[litert]'"


class LiteRtSession:
    """An interpreter with its tensors allocated; see `Session` for the contract."""

    def __init__(
        self, interpreter: Any, *, threads: int | None, batch: int | None, names: tuple[tuple[str, ...], ...] | None
    ) -> None:
        self._interpreter, self._threads = interpreter, threads
        ins, outs = names or _names(interpreter)
        self._inputs = dict(zip(ins, interpreter.get_input_details(), strict=True))
        self._outputs = dict(zip(outs, interpreter.get_output_details(), strict=True))
        first: int | str = "N" if batch is None else batch
        self._shapes = {
            name: (first, *(int(size) for size in told["shape"][1:])) for name, told in self._inputs.items()
        }

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(self._shapes)

    def infer(self, feeds: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        checked_feeds(feeds, self._shapes)
        runs = [self._one({name: value[i : i + 1] for name, value in feeds.items()}) for i in range(_count(feeds))]
        return {name: np.concatenate([run[name] for run in runs]) for name in self._outputs}

    def environment(self) -> dict[str, JsonValue]:
        return {
            "runtime": "litert",
            "version": _version(),
            "threads": self._threads,
            "images_per_run": 1,
            **kernels(self._interpreter),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._interpreter = None

    def _one(self, feeds: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        for name, value in feeds.items():
            told = self._inputs[name]
            self._interpreter.set_tensor(told["index"], quantized(value, told))
        try:
            self._interpreter.invoke()
        except RuntimeError as err:
            raise UserError(f"LiteRT could not run the graph: {err}") from err
        return {n: dequantized(self._interpreter.get_tensor(t["index"]), t) for n, t in self._outputs.items()}


class LiteRt(Runtime):
    """Google's LiteRT on the CPU."""

    name: ClassVar[str] = "litert"
    accepts: ClassVar[frozenset[BundleKind]] = frozenset({BundleKind.ENGINE})
    formats: ClassVar[frozenset[str]] = frozenset({"litert"})
    model_file: ClassVar[str] = "model.tflite"

    def availability(self) -> Availability:
        try:
            import ai_edge_litert.interpreter  # noqa: F401 - the part that is native
        except (ImportError, OSError) as err:
            return Availability(ok=False, reason=f"ai-edge-litert: {err}", install=INSTALL)
        return Availability(ok=True, version=_version())

    def open(self, path: Path, *, threads: int | None = None, batch: int | None = None) -> LiteRtSession:
        return _session(path, threads=threads, batch=batch, names=None)

    def open_bundle(
        self, bundle: ModelBundle, blobs: Blobs, *, threads: int | None = None, batch: int | None = None
    ) -> LiteRtSession:
        # A file has names of its converter's making; the bundle has the model's, in the same order.
        names = (tuple(spec.name for spec in bundle.inputs), tuple(spec.name for spec in bundle.outputs))
        return _session(blobs.path(bundle.file(self.model_file)), threads=threads, batch=batch, names=names)


RUNTIME = LiteRt()


def _session(
    path: Path, *, threads: int | None, batch: int | None, names: tuple[tuple[str, ...], ...] | None
) -> LiteRtSession:
    from ai_edge_litert.interpreter import Interpreter

    failure: Exception | None = None
    with native_stderr() as said:  # it narrates which delegate it created
        try:
            interpreter = Interpreter(model_path=str(path), num_threads=threads)
            interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as err:
            failure = err
    if failure is not None:
        raise UserError(f"LiteRT {_version()} cannot load {path}: {failure or said.last}") from failure
    for told in interpreter.get_input_details():
        if len(told["shape"]) == 0 or told["shape"][0] != 1:
            raise UserError(
                f"{path}: the input {told['name']!r} has the shape {told['shape'].tolist()}; files of one image a run "
                "are what is opened here.",
                hint="convert the model with a batch of 1",
            )
    return LiteRtSession(interpreter, threads=threads, batch=batch, names=names)


def _names(interpreter: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of inputs and outputs as the file's first signature has them, else as its tensors are called."""
    signatures = interpreter.get_signature_list()
    if signatures:
        first = next(iter(signatures.values()))
        return tuple(first["inputs"]), tuple(first["outputs"])
    details = (interpreter.get_input_details(), interpreter.get_output_details())
    ins, outs = (tuple(str(told["name"]) for told in part) for part in details)
    return ins, outs


def _count(feeds: Mapping[str, FloatArray]) -> int:
    return len(next(iter(feeds.values())))


def _version() -> str:
    from importlib.metadata import version

    return version("ai-edge-litert")
