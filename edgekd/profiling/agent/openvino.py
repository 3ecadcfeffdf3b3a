"""OpenVINO on the board's CPU, with the settings of `edgekd/runtimes/openvino.py`: one engine, two places.

Standard library of Python 3.10, and inside functions OpenVINO with the NumPy that it brings.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgekd.profiling.agent.cpu import CpuEngine, feeds_of
from edgekd.profiling.agent.engines import NOT_LOADED, version_of
from edgekd.profiling.agent.wire import AgentError
from edgekd.runtimes.engines.openvino_request import COUNTING, bound, counters_of, cpu_settings, executing, run_bound

DEVICE = "CPU"


class OpenVinoEngine(CpuEngine):
    """A request with its own memory, and what it is fed.

    Args:
        compiled: The model.
        feeds: By input name.
        counting: Compiles it again, so that it counts the times of its layers.
    """

    def __init__(self, compiled: Any, feeds: dict[str, Any], counting: Callable[[], Any]) -> None:
        super().__init__({})
        self._compiled, self._feeds, self._counting = compiled, feeds, counting
        self._request = compiled.create_infer_request()
        self._memory = bound(compiled, self._request)

    def run(self) -> None:
        self._found = run_bound(self._request, self._memory, self._feeds, len(self._compiled.outputs))

    def layers(self, calls: int) -> dict[str, Any] | None:
        request = self._counting().create_infer_request()
        return {"counters": counters_of(request, lambda: request.infer(self._feeds), calls), "calls": calls}

    def tell(self, facts: dict[str, Any]) -> None:
        """Takes the facts over: how long loading took is known when the engine is ready."""
        self._facts = facts

    def close(self) -> None:
        self._request = self._compiled = None
        self._memory.clear()


def opened(spec: dict[str, Any], paths: Sequence[Path], cache: Path) -> OpenVinoEngine:
    """An engine on an ONNX file, its free axes fixed to the batch.

    Raises:
        AgentError: It does not load.
        ImportError: OpenVINO is not installed.
    """
    import openvino

    feeds, version, (path,) = feeds_of(spec), version_of("openvino"), paths
    settings = cpu_settings(int(spec["threads"]))

    def compiled_with(settings: dict[str, Any]) -> Any:
        core = openvino.Core()
        model = core.read_model(path)
        model.reshape({name: list(value.shape) for name, value in feeds.items()})
        return core.compile_model(model, DEVICE, settings)

    began = time.perf_counter()
    try:
        compiled = compiled_with(settings)
        engine = OpenVinoEngine(compiled, feeds, lambda: compiled_with({**settings, **COUNTING}))
    except RuntimeError as err:
        raise AgentError(NOT_LOADED, f"OpenVINO {version} cannot load the model: {err}") from err
    engine.tell(
        {
            "runtime": "openvino",
            "version": version,
            "provider": ",".join(executing(compiled)),
            "threads": int(compiled.get_property("INFERENCE_NUM_THREADS")),
            "performance_hint": str(compiled.get_property("PERFORMANCE_HINT")).split(".")[-1],
            "inference_precision": compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name(),
            "load_ms": (time.perf_counter() - began) * 1e3,
        }
    )
    return engine
