"""The one thing that a program needs: load a bundle, hand over images, get classes."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import numpy as np

from edgekd_runtime.bundle import Bundle
from edgekd_runtime.deploy import EngineEntry
from edgekd_runtime.errors import EngineError, FallbackWarning, ImageError, Unusable
from edgekd_runtime.preprocess import ImageLike
from edgekd_runtime.result import FloatArray, Result, result_of
from edgekd_runtime.session import MODULES, Options, Session, open_session

TASK = "classification"
Skipped = tuple[str, str, str]
"""(engine, runtime, why it is not used)."""


class Engine:
    """A loaded engine of a bundle; a context manager. Calls from several threads wait for each other.

    Made by `Engine.load`.
    """

    def __init__(
        self, bundle: Bundle, entry: EngineEntry, runtime: str, session: Session, skipped: Sequence[Skipped]
    ) -> None:
        self._bundle, self._entry, self._runtime, self._session = bundle, entry, runtime, session
        self._skipped = tuple(skipped)
        self._lock = threading.Lock()
        self._closed = False
        self.preprocessing = bundle.deploy.preprocessing
        self.labels = bundle.deploy.labels

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        runtime: str | None = None,
        engine: str | None = None,
        threads: int | None = None,
        strict: bool = False,
        rebuild: bool = False,
        cache: str | os.PathLike[str] | None = None,
    ) -> Engine:
        """The first engine of a bundle that works here.

        Engines are tried in the bundle's order, best first, each in its runtimes in their order. When it is not the
        very first one of those that were asked for, a `FallbackWarning` says which and why.

        Args:
            path: `model.edgekd`, or the folder of a bundle.
            runtime: Uses this one only, `onnxruntime` for example.
            engine: Uses this one only; `python -m edgekd_runtime BUNDLE --list` shows the names.
            threads: CPU threads; None takes those that the engine was measured with.
            strict: Raises an error instead of falling back.
            rebuild: Builds a TensorRT engine here, from the graph and the timing cache in the bundle, when none fits.
            cache: Where engines that were built here are kept; None is `edgekd-runtime` in the user's cache folder.

        Raises:
            BundleError: The bundle is missing, altered, unsafe or of another format.
            EngineError: No engine works here, or not the one that was asked for; the message says why for each.
        """
        if threads is not None and threads < 1:
            raise EngineError(f"Expected at least one thread, got {threads}.")
        bundle = Bundle(Path(path))
        try:
            wanted = _wanted(bundle, runtime, engine)
            options = Options(threads, rebuild, Path(cache) if cache is not None else default_cache())
            skipped: list[Skipped] = []
            for entry, name in wanted:
                try:
                    session = open_session(bundle, entry, name, options)
                except Unusable as err:
                    skipped.append((entry.name, name, str(err)))
                    if strict:
                        raise EngineError(
                            f"{bundle.path}: the engine {entry.name} cannot be used in {name}: {err}.",
                            "strict=True forbids the next one",
                        ) from err
                    continue
                loaded = cls(bundle, entry, name, session, skipped)
                if skipped:
                    warnings.warn(loaded._fallback(), FallbackWarning, stacklevel=2)
                return loaded
        except BaseException:
            bundle.close()
            raise
        bundle.close()
        reasons = "".join(f"\n  {entry} in {name}: {why}" for entry, name, why in skipped)
        raise EngineError(f"{bundle.path}: no engine works here.{reasons}")

    @overload
    def __call__(self, image: list[Any] | tuple[Any, ...], top: int = 5) -> list[Result]: ...

    @overload
    def __call__(self, image: ImageLike, top: int = 5) -> Result: ...

    def __call__(self, image: Any, top: int = 5) -> Result | list[Result]:
        """The best classes of an image, or of each image of a list; `labels, scores = engine(image)`.

        Args:
            image: A path, the bytes of an image file, a Pillow image, or pixels: (H, W, 3) uint8 RGB. A list or tuple
                of them is a batch; `list(frames)` makes one of (N, H, W, 3).
            top: How many classes.

        Raises:
            ImageError: It cannot be read.
            EngineError: The bundle's task is not classification.
        """
        if self._bundle.deploy.task != TASK:
            raise EngineError(
                f"The task is {self._bundle.deploy.task!r}, and only {TASK} is interpreted.",
                "`engine.run(engine.preprocess(image))` gives the raw output",
            )
        logits = self.run(self.preprocess(image))
        results = [result_of(row, self.labels, top) for row in logits.reshape(len(logits), -1)]
        return results if isinstance(image, (list, tuple)) else results[0]

    def preprocess(self, image: Any) -> FloatArray:
        """(N, C, H, W) float32: what `run` takes; equal to what the model was trained and measured on.

        Args:
            image: As for calling the engine.
        """
        if not isinstance(image, (list, tuple)):
            return self.preprocessing(image)
        if not image:
            raise ImageError("Expected at least one image, got an empty batch.")
        return self.preprocessing.normalised(np.stack([self.preprocessing.cropped(one) for one in image]))

    def run(self, images: FloatArray) -> FloatArray:
        """(N, K) float32: the logits of preprocessed images.

        Args:
            images: (N, C, H, W) float32; larger batches than the engine takes are cut, smaller ones filled up.

        Raises:
            ImageError: Another shape or type.
            EngineError: The engine is closed, or fails.
        """
        wanted = (self.preprocessing.channels, *self.preprocessing.size)
        if images.dtype != np.float32 or images.ndim != 4 or images.shape[1:] != wanted or len(images) == 0:
            raise ImageError(
                f"Expected float32 of shape (N, {', '.join(map(str, wanted))}), "
                f"got {images.dtype} of shape {images.shape}."
            )
        with self._lock:
            if self._closed:
                raise EngineError("The engine is closed.")
            return self._in_parts(np.ascontiguousarray(images))

    @property
    def info(self) -> dict[str, Any]:
        """What runs, JSON-ready: engine, runtime, what was measured for it, and what was passed over and why."""
        entry = self._entry
        return {
            "bundle": str(self._bundle.path),
            "digest": self._bundle.digest,
            "engine": entry.name,
            "format": entry.format,
            "runtime": self._runtime,
            "precision": entry.precision,
            "scheme": entry.scheme,
            "chosen": entry.chosen,
            "latency": None if self._latency is None else dict(self._latency),
            "accuracy": entry.accuracy,
            "size_mib": entry.size_mib,
            **self._session.facts(),
            "skipped": [{"engine": e, "runtime": r, "reason": why} for e, r, why in self._skipped],
        }

    def close(self) -> None:
        """Frees the engine; idempotent."""
        with self._lock:
            self._closed = True
            self._session.close()
            self._bundle.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _in_parts(self, images: FloatArray) -> FloatArray:
        fixed, count = self._session.batch, len(images)
        size = fixed or min(count, self._session.max_batch or count)
        found = []
        try:
            for start in range(0, count, size):
                part = images[start : start + size]
                missing = (fixed or 0) - len(part)
                if missing > 0:
                    part = np.concatenate([part, np.zeros((missing, *part.shape[1:]), dtype=np.float32)])
                found.append(self._session.run(part)[: min(size, count - start)])
        except Unusable as err:
            raise EngineError(f"{self._entry.name} in {self._runtime}: {err}.") from err
        return found[0] if len(found) == 1 else np.concatenate(found)

    @property
    def _latency(self) -> Mapping[str, Any] | None:
        """What the bundle tells holds for the first runtime of an engine; of the others nothing is known."""
        return self._entry.latency if self._runtime == self._entry.runtimes[0] else None

    def _fallback(self) -> str:
        passed = "; ".join(f"{entry} in {name}: {why}" for entry, name, why in self._skipped)
        latency = self._latency
        known = "its latency is not known"
        if latency is not None:
            known = f"{latency.get('origin')} at {latency.get('median_ms')} ms on {latency.get('device')}"
        return f"{self._bundle.path}: using {self._entry.name} in {self._runtime} ({known}), because {passed}."


def default_cache() -> Path:
    """Where engines that were built here are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(base) if base else Path.home() / ".cache") / "edgekd-runtime"


def _wanted(bundle: Bundle, runtime: str | None, engine: str | None) -> list[tuple[EngineEntry, str]]:
    """(engine, runtime) in the order in which they are tried.

    Raises:
        EngineError: Nothing is left of what was asked for.
    """
    entries = bundle.deploy.engines
    if engine is not None and engine not in [entry.name for entry in entries]:
        names = ", ".join(entry.name for entry in entries)
        raise EngineError(f"{bundle.path} has no engine {engine!r}; it has: {names}.")
    found = [
        (entry, name)
        for entry in entries
        if engine in (None, entry.name)
        for name in entry.runtimes
        if runtime in (None, name)
    ]
    if not found:
        able = sorted({name for entry in entries if engine in (None, entry.name) for name in entry.runtimes})
        known = "" if runtime in MODULES else f" This version knows: {', '.join(MODULES)}."
        raise EngineError(f"{bundle.path}: nothing in it is meant for {runtime!r}, only for {', '.join(able)}.{known}")
    return found
