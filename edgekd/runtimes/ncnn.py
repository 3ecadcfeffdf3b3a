"""ncnn on the CPU: runs the `.param` and `.bin` files that pnnx writes.

A network takes one image a run, without a batch axis; a session runs a batch one after the other. The precision of the
bundle sets what it computes in: ncnn would otherwise compute any network in half precision where the CPU can. The times
of layers the library does not tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import numpy as np
from pydantic import JsonValue

from edgekd.core.blobs import Blobs
from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.errors import UserError
from edgekd.runtimes.engines.ncnn_network import NcnnError, NcnnNetwork, arithmetic
from edgekd.runtimes.native_output import native_stderr
from edgekd.runtimes.session import Availability, FloatArray, Runtime, checked_feeds

INSTALL = "pip install 'edgekd[ncnn]'"
PARAM_FILE, WEIGHTS_FILE = "model.param", "model.bin"
INPUT, OUTPUT = "images", "logits"
"""Names where no bundle says others: pnnx numbers inputs and outputs."""


class NcnnSession:
    """A loaded network; see `Session` for the contract."""

    def __init__(
        self,
        param: Path,
        weights: Path,
        *,
        names: tuple[str, str],
        image: tuple[int | str, ...],
        half: bool,
        threads: int | None,
        batch: int | None,
    ) -> None:
        import ncnn

        self._half, self._threads = half, threads or 1
        try:
            self._network = NcnnNetwork(param, weights, threads=self._threads, half=half)
        except NcnnError as err:
            raise UserError(
                f"ncnn {ncnn.__version__} cannot load {param} with {weights}: {err}", hint="convert the model again"
            ) from err
        self._shapes = {names[0]: (batch if batch is not None else "N", *image)}
        self._name = names[1]

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(self._shapes)

    def infer(self, feeds: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        checked_feeds(feeds, self._shapes)
        (images,) = feeds.values()
        try:
            return {self._name: np.stack([self._network.answer(image) for image in images])}
        except NcnnError as err:
            raise UserError(f"ncnn could not run the network: {err}.") from err

    def environment(self) -> dict[str, JsonValue]:
        import ncnn

        return {
            "runtime": "ncnn",
            "version": ncnn.__version__,
            "provider": "cpu",
            "threads": self._threads,
            "images_per_run": 1,
            "arithmetic": arithmetic(half=self._half),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._network.close()


class Ncnn(Runtime):
    """Tencent's ncnn with its CPU kernels."""

    name: ClassVar[str] = "ncnn"
    accepts: ClassVar[frozenset[BundleKind]] = frozenset({BundleKind.ENGINE})
    formats: ClassVar[frozenset[str]] = frozenset({"ncnn"})
    model_file: ClassVar[str] = PARAM_FILE

    def availability(self) -> Availability:
        try:
            import ncnn
        except (ImportError, OSError) as err:
            return Availability(ok=False, reason=f"ncnn: {err}", install=INSTALL)
        return Availability(ok=True, version=str(ncnn.__version__))

    def open(self, path: Path, *, threads: int | None = None, batch: int | None = None) -> NcnnSession:
        """As the base class says, with one thread by default; the weights lie beside the `.param`, in float32."""
        return NcnnSession(
            path,
            path.with_suffix(".bin"),
            names=(INPUT, OUTPUT),
            image=("C", "H", "W"),
            half=False,
            threads=threads,
            batch=batch,
        )

    def open_bundle(
        self, bundle: ModelBundle, blobs: Blobs, *, threads: int | None = None, batch: int | None = None
    ) -> NcnnSession:
        return NcnnSession(
            blobs.path(bundle.file(PARAM_FILE)),
            blobs.path(bundle.file(WEIGHTS_FILE)),
            names=(bundle.inputs[0].name, bundle.outputs[0].name),
            # A network file does not hold its input's size, and ncnn computes nonsense for another one.
            image=bundle.inputs[0].shape[1:],
            half=bundle.tags.get("precision") == "fp16",
            threads=threads,
            batch=batch,
        )

    @lru_cache(maxsize=256)  # noqa: B019 (the one instance of the registry lives as long as the process)
    def knows(self, layer: str) -> bool:
        """Whether this ncnn computes a type of layer, such as `Convolution`."""
        import ncnn

        with native_stderr():
            return ncnn.create_layer(layer) is not None


RUNTIME = Ncnn()
