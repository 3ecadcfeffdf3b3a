"""LiteRT (TensorFlow Lite's successor) on the CPU: `.tflite` files that take one image a call, as edgekd has them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd_runtime.bundle import Bundle
from edgekd_runtime.deploy import EngineEntry
from edgekd_runtime.errors import Unusable
from edgekd_runtime.session import FloatArray, Options, model_file

INSTALL = "pip install 'edgekd-runtime[litert]'"
FORMATS: tuple[str, ...] = ("litert",)


class LiteRtSession:
    """An interpreter; see `Session` for the contract. 8-bit inputs are rounded and outputs scaled back here."""

    batch = 1
    max_batch = None

    def __init__(self, content: bytes, shape: tuple[int, ...], threads: int | None) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._threads = threads
        try:
            self._interpreter: Any = Interpreter(model_content=content, num_threads=threads)
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as err:
            raise Unusable(f"LiteRT {_version()} cannot load the graph: {str(err).strip()[:300]}") from err
        self._input: Mapping[str, Any] = self._interpreter.get_input_details()[0]
        self._output: Mapping[str, Any] = self._interpreter.get_output_details()[0]
        found = tuple(int(size) for size in self._input["shape"])
        if found != (1, *shape):
            raise Unusable(f"the graph takes {found}, expected {(1, *shape)}")

    def run(self, images: FloatArray) -> FloatArray:
        self._interpreter.set_tensor(self._input["index"], quantized(images, self._input))
        try:
            self._interpreter.invoke()
        except RuntimeError as err:
            raise Unusable(f"LiteRT could not run the graph: {err}") from err
        return dequantized(self._interpreter.get_tensor(self._output["index"]), self._output)

    def facts(self) -> dict[str, Any]:
        return {"version": _version(), "provider": "CPU", "threads": self._threads}

    def close(self) -> None:
        self._interpreter = None


def quantized(values: FloatArray, tensor: Mapping[str, Any]) -> npt.NDArray[Any]:
    """The input as the file takes it: float32, or integers round(x / scale) + zero point, saturated."""
    if np.issubdtype(tensor["dtype"], np.floating):
        return values
    scale, zero = tensor["quantization"]
    limits = np.iinfo(tensor["dtype"])
    steps = np.rint(values / np.float32(scale)) + np.float32(zero)
    found: npt.NDArray[Any] = np.clip(steps, limits.min, limits.max).astype(tensor["dtype"])
    return found


def dequantized(values: npt.NDArray[Any], tensor: Mapping[str, Any]) -> FloatArray:
    """The output in float32, scale (q - zero point); a copy."""
    if np.issubdtype(tensor["dtype"], np.floating):
        return np.array(values, dtype=np.float32)
    scale, zero = tensor["quantization"]
    return np.asarray((values.astype(np.float32) - np.float32(zero)) * np.float32(scale), dtype=np.float32)


def open_engine(bundle: Bundle, entry: EngineEntry, options: Options) -> LiteRtSession:
    """See `Opener`."""
    import ai_edge_litert.interpreter  # noqa: F401  # first, so that a missing library costs nothing

    pixels = bundle.deploy.preprocessing
    content = bundle.read(model_file(entry, "model.tflite"))
    return LiteRtSession(content, (pixels.channels, *pixels.size), options.threads or entry.threads)


def _version() -> str:
    try:
        return version("ai-edge-litert")
    except PackageNotFoundError:
        return "of an unknown version"
