"""LiteRT on the board's CPU, as `edgekd/runtimes/litert.py` runs it: one engine, two places.

Standard library of Python 3.10, and inside functions LiteRT with the NumPy that it brings.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekd.profiling.agent.cpu import CpuEngine, one_image
from edgekd.profiling.agent.engines import AGAIN, NOT_LOADED, version_of
from edgekd.profiling.agent.wire import AgentError
from edgekd.runtimes.engines.litert_values import dequantized, kernels, quantized
from edgekd.runtimes.native_output import native_stderr


class LiteRtEngine(CpuEngine):
    """An interpreter and its image. Rounding input and logits is part of a run; the bindings tell of no layers."""

    def __init__(self, interpreter: Any, images: Any, facts: dict[str, Any]) -> None:
        super().__init__(facts)
        self._interpreter, self._images = interpreter, images
        (self._input,) = interpreter.get_input_details()
        self._outputs = interpreter.get_output_details()

    def run(self) -> None:
        self._interpreter.set_tensor(self._input["index"], quantized(self._images, self._input))
        self._interpreter.invoke()
        self._found = [dequantized(self._interpreter.get_tensor(told["index"]), told) for told in self._outputs]

    def close(self) -> None:
        self._interpreter = None


def opened(spec: dict[str, Any], paths: Sequence[Path], cache: Path) -> LiteRtEngine:
    """An engine on a `.tflite` file.

    Raises:
        AgentError: It does not load.
        ImportError: LiteRT is not installed.
    """
    from ai_edge_litert.interpreter import Interpreter

    images, version, (path,) = one_image(spec), version_of("litert"), paths
    began, failure = time.perf_counter(), ""
    with native_stderr() as said:  # it narrates which delegate it created
        try:
            interpreter = Interpreter(model_path=str(path), num_threads=int(spec["threads"]))
            interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as err:
            failure = str(err)
    if failure:
        raise AgentError(NOT_LOADED, f"LiteRT {version} cannot load the model: {failure or said.last}", AGAIN)
    load_ms = (time.perf_counter() - began) * 1e3
    return LiteRtEngine(
        interpreter,
        images,
        {
            "runtime": "litert",
            "version": version,
            "threads": spec["threads"],
            "images_per_run": 1,
            "load_ms": load_ms,
            **kernels(interpreter),
        },
    )
