"""`deploy.json`: which engines a bundle holds, in which order they are preferred, and what they are fed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgekd_runtime.errors import BundleError
from edgekd_runtime.preprocess import Preprocessing

DEPLOY_FILE = "deploy.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Tensor:
    """Name, shape and type of an input or output; a string in the shape is a free axis."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str = "float32"


@dataclass(frozen=True)
class EngineEntry:
    """One engine of a bundle.

    Attributes:
        name: Unique in the bundle.
        format: `onnx`, `tensorrt`, `ncnn`, `litert`, `executorch`; others are passed over.
        files: Path in the bundle by the name that the runtime knows it by, `{"model.onnx": "engines/int8/model.onnx"}`.
        runtimes: That can run it, the preferred one first.
        precision: `fp32`, `fp16` or `int8`.
        scheme: How INT8 is laid out, empty for other precisions.
        threads: CPU threads that it was measured with; None where they do not matter.
        chosen: It won when the bundle was made.
        reason: Why it won or did not.
        latency: `median_ms`, `p99_ms`, `origin`, `device`, as they were measured or predicted; None when unknown.
        accuracy: On the validation data, in [0, 1]; None when unknown.
        size_mib: Of its files.
        fingerprint: Path of `model.engine.json` of a TensorRT engine.
        source: Name of the ONNX engine that a TensorRT engine is built from.
        timing_cache: Path of TensorRT's timing cache.
    """

    name: str
    format: str
    files: Mapping[str, str]
    runtimes: tuple[str, ...]
    precision: str
    scheme: str
    threads: int | None
    chosen: bool
    reason: str
    latency: Mapping[str, Any] | None
    accuracy: float | None
    size_mib: float | None
    fingerprint: str | None
    source: str | None
    timing_cache: str | None


@dataclass(frozen=True)
class Deploy:
    """What a bundle is for and what is in it.

    Attributes:
        task: `classification`, which alone `Engine.__call__` interprets.
        input: What all engines take.
        outputs: What they give; the first one is the logits (N, K).
        preprocessing: From an image to `input`.
        labels: Names of the K classes, or None.
        engines: The best first.
    """

    task: str
    input: Tensor
    outputs: tuple[Tensor, ...]
    preprocessing: Preprocessing
    labels: tuple[str, ...] | None
    engines: tuple[EngineEntry, ...]


def parse_deploy(data: Any, where: str) -> Deploy:
    """The content of `deploy.json`, checked.

    Raises:
        BundleError: Another schema version, or fields that are missing or of the wrong type.
    """
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{where}: schema {version!r}, this version reads {SCHEMA_VERSION}.",
            "install the edgekd-runtime that belongs to the edgekd which wrote the bundle",
        )
    try:
        found = Deploy(
            task=str(data["task"]),
            input=_tensor(data["input"]),
            outputs=tuple(_tensor(entry) for entry in data["outputs"]),
            preprocessing=Preprocessing.parse(data["preprocessing"]),
            labels=None if data.get("labels") is None else tuple(str(label) for label in data["labels"]),
            engines=tuple(_engine(entry) for entry in data["engines"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        raise BundleError(f"{where} is incomplete: {type(err).__name__}: {err}.") from err
    return _consistent(found, where)


def _consistent(found: Deploy, where: str) -> Deploy:
    names = [entry.name for entry in found.engines]
    if not names or len(set(names)) != len(names) or not found.outputs:
        raise BundleError(f"{where}: expected engines with different names and at least one output, got {names}.")
    pixels = found.preprocessing
    wanted = (pixels.channels, *pixels.size)
    if len(found.input.shape) != 4 or found.input.shape[1:] != wanted:
        raise BundleError(f"{where}: the input is {found.input.shape}, but images are preprocessed to {wanted}.")
    classes = found.outputs[0].shape[-1] if found.outputs[0].shape else None
    if found.labels is not None and isinstance(classes, int) and classes != len(found.labels):
        raise BundleError(f"{where}: {classes} outputs, but {len(found.labels)} labels.")
    return found


def _tensor(data: Mapping[str, Any]) -> Tensor:
    shape = tuple(size if isinstance(size, int) else str(size) for size in data["shape"])
    return Tensor(str(data["name"]), shape, str(data.get("dtype", "float32")))


def _engine(data: Mapping[str, Any]) -> EngineEntry:
    def text(key: str) -> str | None:
        return None if data.get(key) is None else str(data[key])

    def number(key: str) -> float | None:
        return None if data.get(key) is None else float(data[key])

    runtimes, threads, latency = data["runtimes"], data.get("threads"), data.get("latency")
    if not isinstance(runtimes, list) or not runtimes:
        raise ValueError(f"the engine {data['name']} has no list of runtimes")
    if threads is not None and int(threads) < 1:
        raise ValueError(f"the engine {data['name']} has {threads} threads")
    if latency is not None:
        latency = {**latency, "median_ms": float(latency["median_ms"]), "origin": str(latency["origin"])}
    return EngineEntry(
        name=str(data["name"]),
        format=str(data["format"]),
        files={str(name): str(path) for name, path in data["files"].items()},
        runtimes=tuple(str(name) for name in runtimes),
        precision=text("precision") or "fp32",
        scheme=text("scheme") or "",
        threads=None if threads is None else int(threads),
        chosen=bool(data.get("chosen", False)),
        reason=text("reason") or "",
        latency=latency,
        accuracy=number("accuracy"),
        size_mib=number("size_mib"),
        fingerprint=text("fingerprint"),
        source=text("source"),
        timing_cache=text("timing_cache"),
    )
