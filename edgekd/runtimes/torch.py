"""Plain PyTorch on the CPU: runs TORCH bundles, as the reference that exports and engines are compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import JsonValue

from edgekd.core.blobs import Blobs
from edgekd.core.bundle import BundleKind, ModelBundle, TensorSpec
from edgekd.errors import UserError
from edgekd.runtimes.session import Availability, FloatArray, Runtime, Session, checked_feeds

if TYPE_CHECKING:
    from torch import nn


class TorchSession:
    """A module in evaluation mode; see `Session` for the contract."""

    def __init__(self, module: nn.Module, inputs: TensorSpec, output: str, threads: int | None, batch: int | None):
        shape = inputs.shape if batch is None else (batch, *inputs.shape[1:])
        self._module = module
        self._shapes = {inputs.name: shape}
        self._output = output
        self._threads = threads

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(self._shapes)

    def infer(self, feeds: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        import torch

        # PyTorch would accept almost any shape, so this cannot wait for an error.
        checked_feeds(feeds, self._shapes)
        (images,) = feeds.values()
        with _threads(self._threads), torch.inference_mode():
            logits = self._module(torch.from_numpy(images))
        return {self._output: logits.numpy()}

    def environment(self) -> dict[str, JsonValue]:
        import torch

        return {
            "runtime": "torch",
            "version": torch.__version__,
            "provider": "eager-cpu",
            "threads": self._threads if self._threads is not None else torch.get_num_threads(),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._module


class Torch(Runtime):
    """Eager PyTorch."""

    name: ClassVar[str] = "torch"
    accepts: ClassVar[frozenset[BundleKind]] = frozenset({BundleKind.TORCH})
    model_file: ClassVar[str] = "weights.safetensors"

    def availability(self) -> Availability:
        try:
            import torch
        except ImportError as err:
            return Availability(ok=False, reason=f"torch: {err}", install="pip install torch")
        return Availability(ok=True, version=torch.__version__)

    def open(self, path: Path, *, threads: int | None = None, batch: int | None = None) -> Session:
        raise UserError(
            f"The torch runtime cannot open {path} by itself: weights need their recipe.",
            hint="open the bundle instead",
        )

    def open_bundle(
        self, bundle: ModelBundle, blobs: Blobs, *, threads: int | None = None, batch: int | None = None
    ) -> TorchSession:
        from edgekd.nn.build import module_from_bundle

        return TorchSession(module_from_bundle(bundle, blobs), bundle.inputs[0], bundle.outputs[0].name, threads, batch)


RUNTIME = Torch()


@contextmanager
def _threads(wanted: int | None) -> Iterator[None]:
    """The thread count is the process's, not the session's: it is set for the call and put back."""
    import torch

    before = torch.get_num_threads()
    if wanted is None or wanted == before:
        yield
        return
    torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)
