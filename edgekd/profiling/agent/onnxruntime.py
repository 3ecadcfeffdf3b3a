"""ONNX Runtime on the board's CPU, with the settings of `edgekd/runtimes/onnxruntime.py`: one engine, two places.

Standard library of Python 3.10, and inside functions ONNX Runtime with the NumPy that it brings.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgekd.profiling.agent.cpu import CpuEngine, feeds_of
from edgekd.profiling.agent.engines import NOT_LOADED
from edgekd.profiling.agent.wire import AgentError

PROVIDER = "CPUExecutionProvider"
_FOLD_WEIGHTS = ("session.disable_quant_qdq", "1")
_LOG_ERRORS_ONLY = 3
WARM_CALLS = 3
"""Calls before those whose layers are recorded: the first ones grow the memory arena."""


class OnnxRuntimeEngine(CpuEngine):
    """A session and what it is fed."""

    def __init__(
        self, session: Any, feeds: dict[str, Any], facts: dict[str, Any], traced: Callable[[Path], Any]
    ) -> None:
        super().__init__(facts)
        self._session = session
        self._traced = traced
        self._feeds = feeds
        self._names = [entry.name for entry in session.get_outputs()]

    def run(self) -> None:
        self._found = self._session.run(self._names, self._feeds)

    def layers(self, calls: int) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="edgekd-") as folder:
            session = self._traced(Path(folder) / "trace")
            for _ in range(WARM_CALLS + calls):
                session.run(self._names, self._feeds)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        return {"events": [_brief(event) for event in events if _tells(event)], "calls": calls}

    def close(self) -> None:
        self._session = None


def opened(spec: dict[str, Any], paths: Sequence[Path], cache: Path) -> OnnxRuntimeEngine:
    """A session on an ONNX file.

    Raises:
        AgentError: The file does not load.
        ImportError: ONNX Runtime is not installed.
    """
    import onnxruntime

    (path,) = paths

    def session_with(options: Any) -> Any:
        return onnxruntime.InferenceSession(str(path), options, providers=[PROVIDER])

    def traced(place: Path) -> Any:
        """A session of its own whose layers are recorded."""
        options = _options(spec, onnxruntime)
        options.enable_profiling, options.profile_file_prefix = True, str(place)
        return session_with(options)

    began = time.perf_counter()
    try:
        session = session_with(_options(spec, onnxruntime))
    except Exception as err:  # the library's exceptions have no common base below Exception
        raise AgentError(NOT_LOADED, f"ONNX Runtime {onnxruntime.__version__} cannot load the model: {err}") from err
    load_ms = (time.perf_counter() - began) * 1e3
    folds = bool(spec.get("fold_weights"))
    return OnnxRuntimeEngine(
        session,
        feeds_of(spec),
        {
            "runtime": "onnxruntime",
            "version": onnxruntime.__version__,
            "provider": session.get_providers()[0],
            "threads": spec["threads"],
            "graph_optimization": "all",
            "execution_mode": "sequential",
            "load_ms": load_ms,
            "weights_dequantized": "at loading" if folds else "as the graph says",
        },
        traced,
    )


def _tells(event: dict[str, Any]) -> bool:
    """Whether an event of a trace is a call of the graph, or the time of a node."""
    return event["name"] == "model_run" or (event.get("cat") == "Node" and event["name"].endswith("_kernel_time"))


def _brief(event: dict[str, Any]) -> dict[str, Any]:
    """What is read of an event at home: a trace of thousands of nodes goes over a slow link."""
    args = event.get("args", {})
    types = args.get("input_type_shape", [])[:1]
    return {
        **{key: event[key] for key in ("cat", "name", "ts", "dur") if key in event},
        "args": {**{k: args[k] for k in ("node_index", "op_name", "provider") if k in args}, "input_type_shape": types},
    }


def _options(spec: dict[str, Any], onnxruntime: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _LOG_ERRORS_ONLY
    options.inter_op_num_threads = 1
    options.intra_op_num_threads = int(spec["threads"])
    for axis in sorted({entry["shape"][0] for entry in spec["inputs"] if isinstance(entry["shape"][0], str)}):
        options.add_free_dimension_override_by_name(axis, int(spec["batch"]))
    if spec.get("fold_weights"):
        options.add_session_config_entry(*_FOLD_WEIGHTS)
    return options
